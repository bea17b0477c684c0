package p2p

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Sizes and times of /flurry/group/1, in bytes.
const (
	secretSize     = 32 // least; 256 bits
	secretMost     = 1024
	nonceSize      = 32
	proofSize      = sha256.Size
	groupPatience  = 10 * time.Second       // for the whole exchange
	groupRetry     = 500 * time.Millisecond // after an exchange that broke off, not after one that was lost, at first
	groupRetryMost = time.Minute            // and at most
)

var errStranger = errors.New("the peer did not prove that it knows the group secret")

// group proves knowledge of the group secret and checks others' proofs. An agent without a secret goes
// through the same motions with a random key, so that only those who know the secret learn who else does.
type group struct{ key []byte }

func newGroup(secret []byte) (*group, error) {
	if secret == nil {
		key := make([]byte, secretSize)
		rand.Read(key)
		return &group{key}, nil
	}
	if err := checkSecret(secret); err != nil {
		return nil, fmt.Errorf("group secret: %w", err)
	}
	return &group{secret}, nil
}

// proof is what the peer in a role ("initiator" or "responder") must say: it holds for these two peers
// in these roles and for these two nonces only.
func (g *group) proof(role string, initiator, responder peer.ID, nonceI, nonceR []byte) []byte {
	m := hmac.New(sha256.New, g.key)
	for _, part := range [][]byte{[]byte("flurry group 1"), []byte(role), []byte(initiator), []byte(responder), nonceI, nonceR} {
		m.Write([]byte{byte(len(part) >> 8), byte(len(part))}) // no part can pass for the end of another
		m.Write(part)
	}
	return m.Sum(nil)
}

// initiates tells which of two peers opens the exchange: the one with the smaller id.
func initiates(self, other peer.ID) bool { return self < other }

// proveGroup opens the exchange with p, if that is our part, and repeats one that broke off.
func (h *Host) proveGroup(ctx context.Context, p *Peer) {
	if !initiates(h.host.ID(), p.id) {
		return
	}
	for wait := groupRetry; ctx.Err() == nil; wait = min(2*wait, groupRetryMost) {
		err := h.proveGroupOnce(ctx, p)
		if err == nil || errors.Is(err, errStranger) {
			return
		}
		h.log.Debug("group exchange broke off", "peer", p.name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (h *Host) proveGroupOnce(ctx context.Context, p *Peer) error {
	opening, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	s, err := h.host.NewStream(network.WithNoDial(opening, "group"), p.id, protoGroup)
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	s.SetDeadline(time.Now().Add(groupPatience))
	if err := h.group.initiate(s, h.host.ID(), p.id); err != nil {
		return err
	}
	h.admit(ctx, p)
	return nil
}

// initiate is the initiator's part. The wire carries, in this order: initiator's nonce, responder's
// nonce, initiator's proof, responder's proof.
func (g *group) initiate(s io.ReadWriter, self, other peer.ID) error {
	nonceI, nonceR, theirs := make([]byte, nonceSize), make([]byte, nonceSize), make([]byte, proofSize)
	rand.Read(nonceI)
	if _, err := s.Write(nonceI); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, nonceR); err != nil {
		return err
	}
	if _, err := s.Write(g.proof("initiator", self, other, nonceI, nonceR)); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, theirs); err != nil {
		return err
	}
	if !hmac.Equal(theirs, g.proof("responder", self, other, nonceI, nonceR)) {
		return errStranger
	}
	return nil
}

// answerGroup is the handler of the responder.
func (h *Host) answerGroup(s network.Stream) {
	defer s.Close()
	other, running := s.Conn().RemotePeer(), h.running.Load()
	if running == nil || !initiates(other, h.host.ID()) {
		s.Reset()
		return
	}
	s.SetDeadline(time.Now().Add(groupPatience))
	if err := h.group.respond(s, h.host.ID(), other); err != nil {
		h.log.Debug("group exchange failed", "peer", other, "err", err)
		return
	}
	if p := h.peers.lookup(other); p != nil {
		h.admit(*running, p)
	}
}

// respond is the responder's part. Who has not proved itself gets random bytes instead of a proof.
func (g *group) respond(s io.ReadWriter, self, other peer.ID) error {
	nonceI, nonceR, theirs := make([]byte, nonceSize), make([]byte, nonceSize), make([]byte, proofSize)
	if _, err := io.ReadFull(s, nonceI); err != nil {
		return err
	}
	rand.Read(nonceR)
	if _, err := s.Write(nonceR); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, theirs); err != nil {
		return err
	}
	known := hmac.Equal(theirs, g.proof("initiator", other, self, nonceI, nonceR))
	mine := g.proof("responder", other, self, nonceI, nonceR)
	if !known {
		rand.Read(mine)
	}
	if _, err := s.Write(mine); err != nil {
		return err
	}
	if !known {
		return errStranger
	}
	return nil
}

// admit takes p into the group for as long as it is connected: it gets the group's have-set.
func (h *Host) admit(ctx context.Context, p *Peer) {
	p.mu.Lock()
	if p.connectedAt.IsZero() || p.group || ctx.Err() != nil {
		p.mu.Unlock()
		return
	}
	p.group = true
	if p.resend != nil {
		p.resend()
	}
	p.mu.Unlock()
	h.host.ConnManager().TagPeer(p.id, "group", 50)
	h.introductions.admitted()
	h.log.Info("peer is of the group", "peer", p.name)
}

// checkSecret refuses what cannot have 256 bits of chance in it.
func checkSecret(b []byte) error {
	if len(b) < secretSize {
		return fmt.Errorf("has %d bits, fewer than 256", 8*len(b))
	}
	var seen [256]bool
	kinds := 0
	for _, c := range b {
		if !seen[c] {
			seen[c] = true
			kinds++
		}
	}
	if kinds < 16 { // 32 random bytes have fewer with a probability below 10^-15
		return errors.New("repeats itself and was not made at random")
	}
	return nil
}

// GenerateSecret returns a new group secret as the text to put into peers.secret_file.
func GenerateSecret() string {
	b := make([]byte, secretSize)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b) + "\n"
}

// LoadSecret reads a group secret: one line of base64, as [GenerateSecret] writes it. It refuses secrets
// weaker than 256 bits, and files that others can read or a group can write.
func LoadSecret(file string) ([]byte, error) {
	data, err := readSecret(file)
	if err != nil {
		return nil, fmt.Errorf("group secret: %w", err)
	}
	if len(data) > secretMost {
		return nil, fmt.Errorf("group secret %s is %d bytes; put one line of base64 there", file, len(data))
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("group secret %s is not base64; make a new one with \"flurry secret\" and copy it to every machine of the group", file)
	}
	if err := checkSecret(secret); err != nil {
		return nil, fmt.Errorf("group secret %s %w; make a new one with \"flurry secret\" and copy it to every machine of the group", file, err)
	}
	return secret, nil
}
