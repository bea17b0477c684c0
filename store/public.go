package store

import (
	"context"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/flurry-nix/flurry/verify"
)

// Large returns the paths of at least size bytes, as NARs, that may go to reader, in no order. It reads the
// whole table once. Errors: ctx's; a [*DatabaseError].
func (s *Store) Large(ctx context.Context, size int64, reader verify.Scope) ([]verify.StoreHash, error) {
	if s.db == nil {
		return nil, nil
	}
	var list []verify.StoreHash
	err := s.db.read(ctx, func(c *conn) error {
		list = list[:0]
		return sqlitex.Execute(c.Conn, largeSQL, &sqlitex.ExecOptions{
			Args: []any{size},
			ResultFunc: func(row *sqlite.Stmt) error {
				if h := hashIn(row.ColumnText(0)); s.Shared(h, reader) {
					list = append(list, h)
				}
				return nil
			},
		})
	})
	return list, err
}
