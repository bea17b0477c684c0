package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"zombiezen.com/go/sqlite"
)

// DatabaseError says what keeps Nix's database from being read, and what to do about it.
type DatabaseError struct {
	Path    string // of the database
	Problem string
	Remedy  string
	Err     error
}

// Error implements error: one line.
func (e *DatabaseError) Error() string {
	return fmt.Sprintf("Nix database %s: %s (%v); %s", e.Path, e.Problem, e.Err, e.Remedy)
}

// Unwrap returns the cause.
func (e *DatabaseError) Unwrap() error { return e.Err }

var (
	errSchema  = errors.New("unknown schema")
	errTorn    = errors.New("it was being written during every attempt")
	errNotFile = errors.New("not a regular file")
)

// schemaVersion is the only one whose meaning is known. Nix has used it since 1.12 (2016).
const schemaVersion = 10

// diagnose turns an error into a *DatabaseError that names the remedy.
func (d *database) diagnose(err error) error {
	if _, ok := errors.AsType[*DatabaseError](err); ok || err == nil {
		return err
	}
	e := &DatabaseError{Path: d.path, Problem: "cannot be read", Err: err,
		Remedy: "look at the cause; reading is retried every second"}
	code := sqlite.ErrCode(err).ToPrimary()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = "does not exist"
		e.Remedy = "set store.database to the path of Nix's db.sqlite, or to \"\" on a machine without Nix"
	case errors.Is(err, fs.ErrPermission), code == sqlite.ResultPerm, code == sqlite.ResultCantOpen, code == sqlite.ResultAuth:
		e.Problem = "may not be opened by this user"
		e.Remedy = "make the file readable and its directories searchable for the agent's user (Nix's default is 0644 in 0755)"
	case errors.Is(err, errNotFile):
		e.Problem = "is not a database file"
		e.Remedy = "set store.database to the path of Nix's db.sqlite"
	case code == sqlite.ResultBusy, code == sqlite.ResultLocked:
		e.Problem = "is locked"
		e.Remedy = "find who locks it (fuser -v on the file); reading is retried every second"
	case errors.Is(err, errTorn):
		e.Problem = "cannot be read consistently"
		e.Remedy = "let this user read the -wal and -shm files beside it, or wait until the writer is done; reading is retried every second"
	case code == sqlite.ResultNotADB, code == sqlite.ResultCorrupt:
		e.Problem = "is corrupt"
		e.Remedy = "check it with `sqlite3 db.sqlite 'pragma integrity_check'` as root and restore it from a backup, or reinstall Nix"
	case code == sqlite.ResultReadOnly:
		e.Problem = "needs recovery, which only its owner can do"
		e.Remedy = "run any Nix command as root, such as `nix-store --verify`"
	case code == sqlite.ResultError && strings.Contains(err.Error(), "no such "):
		e.Problem = "lacks tables or columns of schema 10"
		e.Remedy = "run a Nix command of version 2.0 or later as root to upgrade it, or upgrade flurry if Nix is newer"
	}
	return e
}

// wrongSchema explains a schema file that names another version.
func (d *database) wrongSchema(version int) error {
	e := &DatabaseError{Path: d.path, Err: fmt.Errorf("%w: version %d, want %d", errSchema, version, schemaVersion),
		Problem: "has a newer schema than flurry knows", Remedy: "upgrade flurry"}
	if version < schemaVersion {
		e.Problem = "has an older schema"
		e.Remedy = "run any Nix command of version 2.0 or later as root, which upgrades it"
	}
	return e
}
