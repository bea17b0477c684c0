package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/flurry-nix/flurry/verify"
)

// Each read is one statement where it can be, so that it is one snapshot and short.
const (
	// infoColumns: references joined by blanks, which store paths cannot contain.
	infoColumns = `v.id, v.path, v.hash, v.narSize, v.deriver, v.sigs, v.ca,
		(select group_concat(p.path, ' ') from Refs r join ValidPaths p on p.id = r.reference where r.referrer = v.id)`
	infoSQL  = `select ` + infoColumns + ` from ValidPaths v where v.path >= ?1 and v.path < ?2 order by v.path limit 1`
	rangeSQL = `select ` + infoColumns + ` from ValidPaths v where v.id between ?1 and ?2`
	pathsSQL = `select id, path from ValidPaths where id > ?1 order by id limit ?2`
	largeSQL = `select path from ValidPaths where narSize >= ?1`
	countSQL = `select count(*) from ValidPaths`
	probeSQL = `select ` + infoColumns + ` from ValidPaths v limit 1`
)

// probe finds out whether the schema is the one that is known.
func (d *database) probe(ctx context.Context) error {
	if err := d.checkSchema(); err != nil {
		return err
	}
	return d.read(ctx, func(c *conn) error { return sqlitex.Execute(c.Conn, probeSQL, nil) })
}

// info reads the row of the path with that hash.
func (d *database) info(ctx context.Context, h verify.StoreHash) (info *verify.NarInfo, err error) {
	// '-' follows the hash, '.' is the character after it.
	from := d.dir + "/" + h.String()
	var bad error
	err = d.read(ctx, func(c *conn) error {
		info, bad = nil, ErrAbsent
		return sqlitex.Execute(c.Conn, infoSQL, &sqlitex.ExecOptions{
			Args: []any{from + "-", from + "."},
			ResultFunc: func(s *sqlite.Stmt) error {
				r := scanRow(s)
				info, bad = r.narInfo(d.dir)
				return nil
			},
		})
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

// page is what one look at the ids found.
type page struct {
	rows   []row
	count  int // rows there are in all, if these are the last ones, else -1
	access Access
}

// paths reads rows with ids above after, at most limit of them, in one snapshot.
func (d *database) paths(ctx context.Context, after int64, limit int) (p page, err error) {
	err = d.read(ctx, func(c *conn) (err error) {
		p.rows, p.count, p.access = p.rows[:0], -1, c.access
		end := sqlitex.Transaction(c.Conn)
		defer end(&err)
		err = sqlitex.Execute(c.Conn, pathsSQL, &sqlitex.ExecOptions{
			Args: []any{after, limit},
			ResultFunc: func(s *sqlite.Stmt) error {
				p.rows = append(p.rows, row{s.ColumnInt64(0), s.ColumnText(1)})
				return nil
			},
		})
		if err != nil || len(p.rows) == limit {
			return err
		}
		return sqlitex.Execute(c.Conn, countSQL, &sqlitex.ExecOptions{
			ResultFunc: func(s *sqlite.Stmt) error { p.count = s.ColumnInt(0); return nil },
		})
	})
	return p, err
}

// infos reads whole rows with ids from lo to hi.
func (d *database) infos(ctx context.Context, lo, hi int64) (rows []infoRow, err error) {
	err = d.read(ctx, func(c *conn) error {
		rows = rows[:0]
		return sqlitex.Execute(c.Conn, rangeSQL, &sqlitex.ExecOptions{
			Args:       []any{lo, hi},
			ResultFunc: func(s *sqlite.Stmt) error { rows = append(rows, scanRow(s)); return nil },
		})
	})
	return rows, err
}

// infoRow is one row of infoColumns.
type infoRow struct {
	id, narSize                          int64
	path, hash, deriver, sigs, ca, paths string
}

func scanRow(s *sqlite.Stmt) infoRow {
	return infoRow{
		id: s.ColumnInt64(0), path: s.ColumnText(1), hash: s.ColumnText(2), narSize: s.ColumnInt64(3),
		deriver: s.ColumnText(4), sigs: s.ColumnText(5), ca: s.ColumnText(6), paths: s.ColumnText(7),
	}
}

// narInfo turns the row into a narinfo of the store in dir.
func (r *infoRow) narInfo(dir string) (*verify.NarInfo, error) {
	n := &verify.NarInfo{NarSize: r.narSize, CA: r.ca}
	var err error
	if n.StorePath, err = parseIn(dir, r.path); err != nil {
		return nil, err
	}
	if n.NarHash, err = verify.ParseHash(r.hash); err != nil {
		return nil, fmt.Errorf("%s: %w", r.path, err)
	}
	if r.narSize <= 0 {
		return nil, fmt.Errorf("%s: %w: NAR size %d", r.path, verify.ErrMalformed, r.narSize)
	}
	for _, ref := range strings.Fields(r.paths) {
		p, err := parseIn(dir, ref)
		if err != nil {
			return nil, fmt.Errorf("%s: reference: %w", r.path, err)
		}
		n.References = append(n.References, p.Base())
	}
	slices.Sort(n.References)
	if p, err := parseIn(dir, r.deriver); err == nil {
		n.Deriver = p.Base()
	}
	n.Sigs = strings.Fields(r.sigs)
	return n, nil
}

func parseIn(dir, path string) (verify.StorePath, error) {
	p, err := verify.ParseStorePath(path)
	if err == nil && p.Dir() != dir {
		err = fmt.Errorf("%s: %w: not in %s", path, verify.ErrMalformed, dir)
	}
	return p, err
}

// hashIn returns the store hash in a path, the zero one if it is malformed.
func hashIn(path string) verify.StoreHash {
	p, _ := verify.ParseStorePath(path)
	return p.Hash()
}
