package dht

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	rememberMost = 64                  // peers that a restart finds again without a bootstrap node
	forgetAfter  = 30 * 24 * time.Hour // since a peer was met last
)

// seenPeer is a peer that was in the routing table.
type seenPeer struct {
	peer.AddrInfo
	at time.Time // when last
}

// known is one remembered peer.
type known struct {
	ID    string   `json:"id"`
	Addrs []string `json:"addrs"`
	Seen  int64    `json:"seen"` // seconds since 1970
}

// loadPeers reads what savePeers wrote. A missing file is no error. What it says are hints.
func loadPeers(file string, now time.Time) ([]seenPeer, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []known
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("remembered peers: %w; remove the file if it is damaged", err)
	}
	var out []seenPeer
	for _, k := range list[:min(len(list), rememberMost)] {
		at := time.Unix(k.Seen, 0)
		if k.Seen == 0 || at.After(now) { // an earlier version's, or the clock was wrong
			at = now
		}
		if info, ok := addrInfo(k.ID, k.Addrs); ok && now.Sub(at) < forgetAfter {
			out = append(out, seenPeer{info, at})
		}
	}
	return out, nil
}

func addrInfo(id string, addrs []string) (info peer.AddrInfo, ok bool) {
	var err error
	if info.ID, err = peer.Decode(id); err != nil {
		return info, false
	}
	for _, s := range addrs[:min(len(addrs), discovery.MaxAddrs)] {
		if a, err := ma.NewMultiaddr(s); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info, len(info.Addrs) > 0
}

// savePeers replaces the file.
func savePeers(file string, list []seenPeer) error {
	if file == "" || len(list) == 0 {
		return nil
	}
	out := make([]known, 0, len(list))
	for _, info := range list[:min(len(list), rememberMost)] {
		k := known{ID: info.ID.String(), Seen: info.at.Unix()}
		for _, a := range info.Addrs[:min(len(info.Addrs), discovery.MaxAddrs)] {
			k.Addrs = append(k.Addrs, a.String())
		}
		out = append(out, k)
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
