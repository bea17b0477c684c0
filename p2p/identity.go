package p2p

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Identity is the agent's private key; its hash is the peer id.
type Identity struct {
	key crypto.PrivKey
	id  peer.ID
}

// ID returns the peer id in its usual text form.
func (i *Identity) ID() string { return i.id.String() }

// LoadIdentity reads the private key in file, or makes one there (mode 0600, in place only once it is
// whole). It refuses a key that others can read.
func LoadIdentity(file string) (*Identity, error) {
	data, err := readSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(file)
	}
	if err != nil {
		return nil, err
	}
	key, err := crypto.UnmarshalPrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("identity %s is damaged (%v): move it away and restart to get a new one", file, err)
	}
	return newIdentity(key)
}

func newIdentity(key crypto.PrivKey) (*Identity, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return &Identity{key, id}, nil
}

func createIdentity(file string) (*Identity, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	data, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	if err := writeFileDurably(file, data); err != nil {
		return nil, fmt.Errorf("store the identity: %w; make the state directory writable", err)
	}
	return newIdentity(key)
}

// maxSecretFile bounds a file with a key, in bytes.
const maxSecretFile = 64 << 10

// readSecret reads a small file that nobody else may read and no group may write.
func readSecret(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hang us
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 { // a systemd credential is 0440
		return nil, fmt.Errorf("%s has mode %04o, others could use it: chmod 600 %s", file, mode, file)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to user %d, who could change it: chown it to the agent's user or root", file, s.Uid)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(data) > maxSecretFile {
		err = fmt.Errorf("%s is too large for a key", file)
	}
	return data, err
}

// writeFileDurably writes a 0600 file that is whole or absent after a crash.
func writeFileDurably(file string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
