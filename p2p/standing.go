package p2p

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Bounds of the standing file.
const (
	standingVersion  = 1
	standingMaxBytes = 1 << 20
	standingMaxBans  = 2000
	standingMaxGood  = 500 // records of peers that did well, the best
	standingSave     = 10 * time.Minute
)

// standing keeps what must outlive the process: who sent wrong bytes, and who did well. Peers are known
// by identity, never by address.
type standing struct {
	host *Host
	file string // "" = none
	wake chan struct{}
}

type standingFile struct {
	Version int              `json:"version"`
	Peers   []standingRecord `json:"peers"`
}

type standingRecord struct {
	ID          string    `json:"id"`
	Good        int       `json:"good,omitempty"` // verified transfers
	BannedUntil time.Time `json:"banned_until,omitzero"`
	Reason      string    `json:"reason,omitempty"`
}

func newStanding(h *Host, file string) *standing {
	return &standing{host: h, file: file, wake: make(chan struct{}, 1)}
}

// changed asks for the file to be written soon.
func (s *standing) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// load fills the peer table. A file that cannot be used is reported and replaced later: an agent must
// start without it.
func (s *standing) load() {
	if s.file == "" {
		return
	}
	list, err := readStanding(s.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.host.log.Warn("the standing of peers is forgotten", "err", err)
	}
	now := s.host.now()
	for _, r := range list {
		id, err := peer.Decode(r.ID)
		if err != nil {
			continue
		}
		p := s.host.peers.get(id)
		if p == nil {
			return
		}
		p.good = max(0, r.Good)
		if r.BannedUntil.After(now) {
			// Never longer than a new ban, whatever the clock was when it was written.
			p.bannedUntil, p.banReason = earliest(r.BannedUntil, now.Add(banTime)), cleanText(r.Reason, maxReason)
		}
	}
}

func readStanding(file string) ([]standingRecord, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, standingMaxBytes+1))
	if err != nil {
		return nil, err
	}
	list, err := parseStanding(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func parseStanding(data []byte) ([]standingRecord, error) {
	var content standingFile
	if len(data) > standingMaxBytes {
		return nil, errors.New("too large")
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&content); err != nil {
		return nil, err
	}
	if content.Version != standingVersion || len(content.Peers) > standingMaxBans+standingMaxGood {
		return nil, fmt.Errorf("version %d with %d peers", content.Version, len(content.Peers))
	}
	return content.Peers, nil
}

// run writes the file soon after a ban, now and then, and at the end.
func (s *standing) run(ctx context.Context) error {
	if s.file == "" {
		return nil
	}
	tick := time.NewTicker(standingSave)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-tick.C:
		}
		if err := s.save(); err != nil {
			s.host.log.Warn("the standing of peers cannot be stored; make the state directory writable", "err", err)
		}
	}
	return nil
}

func (s *standing) save() error {
	now := s.host.now()
	var bans, good []standingRecord
	for _, p := range s.host.peers.all() {
		p.mu.Lock()
		r := standingRecord{ID: p.name, Good: p.good}
		if now.Before(p.bannedUntil) {
			r.BannedUntil, r.Reason = p.bannedUntil.UTC().Round(time.Second), p.banReason
			bans = append(bans, r)
		} else if p.good > 0 {
			good = append(good, r)
		}
		p.mu.Unlock()
	}
	slices.SortFunc(bans, func(a, b standingRecord) int {
		return cmp.Or(b.BannedUntil.Compare(a.BannedUntil), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(good, func(a, b standingRecord) int {
		return cmp.Or(cmp.Compare(b.Good, a.Good), cmp.Compare(a.ID, b.ID))
	})
	list := slices.Concat(bans[:min(len(bans), standingMaxBans)], good[:min(len(good), standingMaxGood)])
	data, err := json.MarshalIndent(standingFile{standingVersion, list}, "", " ")
	if err != nil {
		return err
	}
	return writeFileDurably(s.file, append(data, '\n'))
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
