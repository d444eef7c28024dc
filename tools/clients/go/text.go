package penstock

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"
)

// ErrStreamDiffers says that what was streamed is not what the result says. Only the result counts.
var ErrStreamDiffers = errors.New("penstock: the streamed text is not the result's")

// Streamed chunks, placed by their offsets; what is behind the first `skip` bytes goes to give, in
// whole characters.
type text struct {
	all  []byte
	held []byte // begins a character that is not whole yet
	skip int
	give func(piece string) error
}

func (t *text) add(offset int, chunk []byte) error {
	known := len(t.all) - offset
	if known < 0 || known >= len(chunk) { // behind a gap: the result has it
		return nil
	}
	return t.more(chunk[known:], false)
}

func (t *text) end(r *Result) error {
	whole := []byte(r.Text)
	if len(whole) < len(t.all) && !r.OK() {
		if !bytes.HasPrefix(t.all, whole) {
			return ErrStreamDiffers
		}
		return t.more(nil, true)
	}
	if !bytes.HasPrefix(whole, t.all) {
		return ErrStreamDiffers
	}
	return t.more(whole[len(t.all):], true)
}

func (t *text) more(fresh []byte, last bool) error {
	hidden := t.skip - len(t.all)
	t.all = append(t.all, fresh...)
	if hidden > 0 {
		if hidden >= len(fresh) {
			fresh = nil
		} else {
			fresh = fresh[hidden:]
		}
	}
	t.held = append(t.held, fresh...)
	n := len(t.held)
	for i := 1; i <= 3 && i <= len(t.held) && !last; i++ {
		if tail := t.held[len(t.held)-i:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				n -= i
			}
			break
		}
	}
	if n == 0 {
		return nil
	}
	piece := strings.ToValidUTF8(string(t.held[:n]), "\uFFFD")
	t.held = append(t.held[:0], t.held[n:]...)
	return t.give(piece)
}
