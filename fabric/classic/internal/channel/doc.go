// Package channel is what the packages under fabric/classic have in common: a node
// behind two channels of envelopes, whose content is any value.
//
// # The wire
//
// An envelope is a message whose Type is
//
//	"C" <kind> [<id>]    to one server
//	"B" <kind> [<id>]    to all
//
// where id is MsgId, zigzag, in base 62 without leading zeros, left out if it is 0. Kind
// says what the content is, and the content is the message's Data:
//
//	s  a string              b  a []byte            n  nil, empty
//	g  any value in gob      j  any value in JSON, to be decoded without a type
//	0 to 9, A to Z           JSON, of the type with that place in a fixed table
//
// A message without a Type, from a plain NATS client or [fabric.Node.Send], is taken for a
// []byte with MsgId 0.
package channel
