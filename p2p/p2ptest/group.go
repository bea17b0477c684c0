package p2ptest

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Proof is what a peer in a role says to prove that it knows a secret; see package p2p.
func Proof(secret []byte, role string, initiator, responder peer.ID, nonceI, nonceR []byte) []byte {
	m := hmac.New(sha256.New, secret)
	for _, part := range [][]byte{[]byte("flurry group 1"), []byte(role), []byte(initiator), []byte(responder), nonceI, nonceR} {
		m.Write(append([]byte{byte(len(part) >> 8), byte(len(part))}, part...))
	}
	return m.Sum(nil)
}

// Prove opens the group exchange with an agent whose id is greater than the recorder's; with a smaller
// one the agent opens it.
func (r *Recorder) Prove(ctx context.Context, id string) error {
	s, err := r.Open(ctx, id, ProtoGroup)
	if err != nil {
		return err
	}
	defer s.Reset()
	self, other := s.Conn().LocalPeer(), s.Conn().RemotePeer()
	nonceI, nonceR, proof := r.nonce(), make([]byte, 32), make([]byte, 32)
	s.Write(nonceI)
	if _, err := io.ReadFull(s, nonceR); err != nil {
		return err
	}
	s.Write(Proof(r.secret(), "initiator", self, other, nonceI, nonceR))
	if _, err := io.ReadFull(s, proof); err != nil {
		return err
	}
	if !hmac.Equal(proof, Proof(r.secret(), "responder", self, other, nonceI, nonceR)) {
		return errors.New("the agent did not prove that it knows the secret")
	}
	return nil
}

// Initiates tells whether it is the recorder's part to open the group exchange with an agent.
func (r *Recorder) Initiates(id string) bool {
	p, err := peer.Decode(id)
	return err == nil && r.host.ID() < p
}

func (r *Recorder) respond(s network.Stream) {
	defer s.Close()
	self, other := s.Conn().LocalPeer(), s.Conn().RemotePeer()
	nonceI, nonceR, proof := make([]byte, 32), r.nonce(), make([]byte, 32)
	if _, err := io.ReadFull(s, nonceI); err != nil {
		return
	}
	s.Write(nonceR)
	if _, err := io.ReadFull(s, proof); err != nil {
		return
	}
	s.Write(Proof(r.secret(), "responder", other, self, nonceI, nonceR))
}

func (r *Recorder) nonce() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

func (r *Recorder) secret() []byte {
	if r.cfg.Secret != nil {
		return r.cfg.Secret
	}
	return []byte("no secret at all")
}
