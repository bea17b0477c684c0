package page

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"strings"
)

//go:embed assets
var files embed.FS

// asset is a file of the page, named after its content, so that it can be kept for ever.
type asset struct {
	kind string
	body []byte
}

var assets, assetNames = loadAssets()

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"asset": func(name string) string { return "/assets/" + assetNames[name] },
}).ParseFS(files, "assets/*.html"))

func loadAssets() (byName map[string]asset, names map[string]string) {
	byName, names = map[string]asset{}, map[string]string{}
	for file, kind := range map[string]string{
		"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		body, err := files.ReadFile("assets/" + file)
		if err != nil {
			panic(err) // embedded: cannot be missing
		}
		sum := sha256.Sum256(body)
		base, ext, _ := strings.Cut(file, ".")
		names[file] = base + "-" + hex.EncodeToString(sum[:6]) + "." + ext
		byName[names[file]] = asset{kind, body}
	}
	return byName, names
}

func serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := assets[r.PathValue("name")]
	harden(w.Header())
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Write(a.body)
}
