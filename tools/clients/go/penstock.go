// Package penstock is a client of Penstock's queue: jobs in, results out, over redigo and msgpack.
//
//	client, err := penstock.Open("redis://127.0.0.1:6379", "default", "default")
//	job := &penstock.Job{Op: "completion", Body: map[string]any{"prompt": "Hello"}}
//	err = client.Enqueue(ctx, job)
//	result, err := client.Wait(ctx, job)
//
// One goroutine at a time uses a Client. Lost connections are made again for as long as Patience
// says, and what was cut off is said again with the same id, which runs once. A context that ends
// ends a call; its error is then the context's.
package penstock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	conflict      = "id_conflict"
	block         = 5 * time.Second // of one XREAD; well below the socket's timeout
	socketTimeout = 30 * time.Second
	entriesAtOnce = 1000
	pushAtOnce    = 64
)

// ErrNone says that there is no result yet, or no more.
var ErrNone = errors.New("penstock: there is no result")

// RedisAway says that Redis could not be reached, or was full, for longer than Patience.
type RedisAway struct{ Err error }

func (e *RedisAway) Error() string { return "penstock: Redis is away or full: " + e.Err.Error() }
func (e *RedisAway) Unwrap() error { return e.Err }

// Refused says that Redis does not take a command: login, rights.
type Refused struct{ Err error }

func (e *Refused) Error() string { return "penstock: Redis refused: " + e.Err.Error() }
func (e *Refused) Unwrap() error { return e.Err }

// Client of one tenant of one queue.
type Client struct {
	Patience time.Duration // a minute, if it is not set

	url                         string
	inbox, log, results, chunks string
	conn                        redis.Conn // nil: none
}

// Open makes a client. url: redis://[user:password@]host:port, or unix://path. It connects when
// that is needed.
func Open(url, queue, tenant string) (*Client, error) {
	if !strings.HasPrefix(url, "redis://") && !strings.HasPrefix(url, "unix://") {
		return nil, fmt.Errorf("penstock: %q begins with neither redis:// nor unix://", url)
	}
	key := func(kind string) string { return fmt.Sprintf("ps:{%s}:%s:%s", queue, kind, tenant) }
	return &Client{Patience: time.Minute, url: url, inbox: key("in"), log: key("ev"),
		results: key("r") + ":", chunks: key("t") + ":"}, nil
}

// Close ends the connection.
func (c *Client) Close() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = nil
}

// Enqueue pushes a job. An ID is made if there is none.
func (c *Client) Enqueue(ctx context.Context, job *Job) error {
	if err := job.name(); err != nil {
		return err
	}
	packed, err := job.pack()
	if err != nil {
		return err
	}
	if job.Since, err = c.lastEvent(ctx); err != nil {
		return err
	}
	return c.push(ctx, packed)
}

// Cancel asks for the job's end. One that has ended stays as it is; the others end with the status
// cancelled.
func (c *Client) Cancel(ctx context.Context, id string) error {
	packed, err := (&Job{Op: "cancel", ID: id}).pack()
	if err != nil {
		return err
	}
	return c.push(ctx, packed)
}

// Result is what there is now; ErrNone: nothing.
func (c *Client) Result(ctx context.Context, id string) (*Result, error) {
	raw, err := redis.Bytes(c.do(ctx, 0, "GET", c.results+id))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	return readResult(raw)
}

// Wait gives the result at the job's end. Of the job only ID and Since count: without Since (a job
// of an earlier process) the result is looked for first.
func (c *Client) Wait(ctx context.Context, job *Job) (*Result, error) {
	return c.follow(ctx, job, nil)
}

// Stream gives pieces of the text as they come, and what is missing at the end; then it returns the
// result. For jobs with Stream; the text of others comes at once. offset: bytes of the text that
// are here already. An error of give ends it.
func (c *Client) Stream(ctx context.Context, job *Job, offset int,
	give func(piece string) error) (*Result, error) {
	t := &text{skip: offset, give: give}
	r, err := c.follow(ctx, job, t)
	if err != nil {
		return nil, err
	}
	return r, t.end(r)
}

// --- commands

func (c *Client) lastEvent(ctx context.Context) (string, error) {
	got, err := redis.Values(c.do(ctx, 0, "XREVRANGE", c.log, "+", "-", "COUNT", 1))
	if err != nil || len(got) == 0 {
		return "0-0", err
	}
	entries, err := entriesOf(got)
	if err != nil {
		return "", err
	}
	return entries[0].id, nil
}

// Whether a push that was cut off arrived is unknown: it is made again as it was.
func (c *Client) push(ctx context.Context, packed ...[]byte) error {
	args := redis.Args{}.Add(c.inbox)
	for _, bytes := range packed {
		args = args.Add(bytes)
	}
	_, err := c.do(ctx, 0, "RPUSH", args...)
	return err
}

// One command, until it is answered; blockFor is how long the server may take on purpose.
func (c *Client) do(ctx context.Context, blockFor time.Duration, name string,
	args ...any) (any, error) {
	patience := c.Patience
	if patience <= 0 {
		patience = time.Minute
	}
	until := time.Now().Add(patience)
	for delay := 20 * time.Millisecond; ; delay = shorter(2*delay, time.Second) {
		reply, err := c.try(ctx, blockFor, name, args...)
		if err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var said redis.Error
		if errors.As(err, &said) && !passes(said) {
			return nil, &Refused{err}
		}
		if time.Now().After(until) {
			return nil, &RedisAway{err}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(delay):
		}
	}
}

func shorter(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}

func passes(said redis.Error) bool {
	return strings.HasPrefix(string(said), "OOM") || strings.HasPrefix(string(said), "LOADING")
}

func (c *Client) try(ctx context.Context, blockFor time.Duration, name string,
	args ...any) (any, error) {
	if c.conn == nil {
		conn, err := dial(c.url)
		if err != nil {
			return nil, err
		}
		c.conn = conn
	}
	conn, done := c.conn, make(chan struct{})
	defer close(done)
	go func() { // a context that ends ends a command that blocks
		select {
		case <-ctx.Done():
			conn.Close()
		case <-done:
		}
	}()
	reply, err := redis.DoWithTimeout(conn, socketTimeout+blockFor, name, args...)
	if conn.Err() != nil || ctx.Err() != nil {
		c.Close()
	}
	return reply, err
}

func dial(url string) (redis.Conn, error) {
	options := []redis.DialOption{redis.DialConnectTimeout(socketTimeout),
		redis.DialReadTimeout(socketTimeout), redis.DialWriteTimeout(socketTimeout)}
	if path := strings.TrimPrefix(url, "unix://"); path != url {
		return redis.Dial("unix", path, options...)
	}
	return redis.DialURL(url, options...)
}

// --- streams of Redis

type entry struct {
	id     string
	fields map[string]string
}

func entriesOf(list []any) ([]entry, error) {
	entries := make([]entry, 0, len(list))
	for _, each := range list {
		pair, err := redis.Values(each, nil)
		if err != nil || len(pair) != 2 {
			return nil, fmt.Errorf("penstock: no stream entry: %v", err)
		}
		id, err := redis.String(pair[0], nil)
		if err != nil {
			return nil, err
		}
		fields, err := redis.StringMap(pair[1], nil)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{id, fields})
	}
	return entries, nil
}

// A place in streams: the key, and the last entry that was seen.
type place struct{ key, at string }

// News gives the new entries of each place, moves it behind them, and says whether the first of
// them, the event log, has dropped some unseen.
func (c *Client) news(ctx context.Context, blockFor time.Duration,
	places []*place) (map[string][]entry, bool, error) {
	since, ms := places[0].at, blockFor.Milliseconds()
	if ms < 1 {
		ms = 1 // 0 would be without end
	}
	args := redis.Args{}.Add("COUNT", entriesAtOnce, "BLOCK", ms, "STREAMS")
	for _, p := range places {
		args = args.Add(p.key)
	}
	for _, p := range places {
		args = args.Add(p.at)
	}
	got, err := redis.Values(c.do(ctx, blockFor, "XREAD", args...))
	if errors.Is(err, redis.ErrNil) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	found := map[string][]entry{}
	for _, each := range got {
		pair, _ := redis.Values(each, nil)
		if len(pair) != 2 {
			return nil, false, errors.New("penstock: XREAD gave no streams")
		}
		key, _ := redis.String(pair[0], nil)
		list, _ := redis.Values(pair[1], nil)
		if found[key], err = entriesOf(list); err != nil {
			return nil, false, err
		}
	}
	for _, p := range places {
		if n := len(found[p.key]); n > 0 {
			p.at = found[p.key][n-1].id
		}
	}
	if len(found[c.log]) == 0 {
		return found, false, nil
	}
	gap, err := c.dropped(ctx, since)
	return found, gap, err
}

func (c *Client) dropped(ctx context.Context, since string) (bool, error) {
	got, err := redis.Values(c.do(ctx, 0, "XRANGE", c.log, "-", "+", "COUNT", 1))
	if err != nil || len(got) == 0 {
		return true, err
	}
	oldest, err := entriesOf(got)
	if err != nil {
		return false, err
	}
	return later(oldest[0].id, since), nil
}

// Is the stream entry a later than b?
func later(a, b string) bool {
	number := func(id string) (ms, seq uint64) {
		first, second, _ := strings.Cut(id, "-")
		ms, _ = strconv.ParseUint(first, 10, 64)
		seq, _ = strconv.ParseUint(second, 10, 64)
		return
	}
	ams, aseq := number(a)
	bms, bseq := number(b)
	return ams > bms || (ams == bms && aseq > bseq)
}

// The id and event of an entry that ends a wait; "": it does not.
func endOf(e entry) (id, event string) {
	switch event := e.fields["event"]; event {
	case "done", "failed", "cancelled", "expired", conflict:
		return e.fields["id"], event
	}
	return "", ""
}

func (c *Client) endedBy(ctx context.Context, id, event string) (*Result, error) {
	raw, err := redis.Bytes(c.do(ctx, 0, "GET", c.results+id))
	if err != nil && !errors.Is(err, redis.ErrNil) {
		return nil, err
	}
	return endedBy(id, event, raw)
}

// Until the job's end; t (nil: none) gets its chunks.
func (c *Client) follow(ctx context.Context, job *Job, t *text) (*Result, error) {
	since := job.Since
	if since == "" {
		var err error
		// Before the look, so that nothing falls between.
		if since, err = c.lastEvent(ctx); err != nil {
			return nil, err
		}
		if r, err := c.Result(ctx, job.ID); !errors.Is(err, ErrNone) {
			return r, err
		}
	}
	places := []*place{{c.log, since}}
	if t != nil {
		places = append(places, &place{c.chunks + job.ID, "0-0"})
	}
	for {
		found, gap, err := c.news(ctx, block, places)
		if err != nil {
			return nil, err
		}
		for _, chunk := range found[c.chunks+job.ID] {
			offset, err := strconv.Atoi(chunk.fields["offset"])
			if err != nil {
				return nil, fmt.Errorf("penstock: a chunk without offset: %w", err)
			}
			if err := t.add(offset, []byte(chunk.fields["bytes"])); err != nil {
				return nil, err
			}
		}
		for _, e := range found[c.log] {
			if id, event := endOf(e); id == job.ID && id != "" {
				return c.endedBy(ctx, id, event)
			}
		}
		if gap {
			if r, err := c.Result(ctx, job.ID); !errors.Is(err, ErrNone) {
				return r, err
			}
		}
	}
}

// --- many

// Bulk runs many jobs. next gives one after the other and io.EOF at their end; ended gets every job
// with its result, in no order. At most window jobs are in the queue, and next is not called while
// ended has not returned. An error of either ends it; what is in the queue then goes on there.
func (c *Client) Bulk(ctx context.Context, window int, next func() (*Job, error),
	ended func(*Job, *Result) error) error {
	if window < 1 {
		return errors.New("penstock: a window of no jobs")
	}
	since, err := c.lastEvent(ctx)
	if err != nil {
		return err
	}
	open, more, places := map[string]*Job{}, true, []*place{{c.log, since}}
	for {
		if more, err = c.fill(ctx, open, window, more, next); err != nil || len(open) == 0 {
			return err
		}
		wait := block // the window is filled first; then there is nothing to do but wait
		if more && len(open) < window {
			wait = time.Millisecond
		}
		found, gap, err := c.news(ctx, wait, places)
		if err != nil {
			return err
		}
		events := map[string]string{}
		for _, e := range found[c.log] {
			if id, event := endOf(e); open[id] != nil {
				events[id] = event
			}
		}
		if err := c.endSome(ctx, open, events, gap, ended); err != nil {
			return err
		}
	}
}

// Pushes jobs until the window is full or pushAtOnce were; says whether there may be more.
func (c *Client) fill(ctx context.Context, open map[string]*Job, window int, more bool,
	next func() (*Job, error)) (bool, error) {
	var packed [][]byte
	for more && len(open) < window && len(packed) < pushAtOnce {
		job, err := next()
		if err == io.EOF {
			more = false
			break
		}
		if err != nil {
			return false, err
		}
		if err := job.name(); err != nil {
			return false, err
		}
		if open[job.ID] != nil {
			return false, errTwice
		}
		bytes, err := job.pack()
		if err != nil {
			return false, err
		}
		open[job.ID] = job
		packed = append(packed, bytes)
	}
	if len(packed) == 0 {
		return more, nil
	}
	return more, c.push(ctx, packed...)
}

// Ends those with an event, and with a gap those that have a result by now.
func (c *Client) endSome(ctx context.Context, open map[string]*Job, events map[string]string,
	gap bool, ended func(*Job, *Result) error) error {
	if gap {
		for id := range open {
			if _, known := events[id]; !known {
				events[id] = ""
			}
		}
	}
	for id, event := range events {
		var r *Result
		var err error
		if event == "" {
			r, err = c.Result(ctx, id)
		} else {
			r, err = c.endedBy(ctx, id, event)
		}
		if errors.Is(err, ErrNone) {
			continue
		}
		if err != nil {
			return err
		}
		job := open[id]
		delete(open, id)
		if err := ended(job, r); err != nil {
			return err
		}
	}
	return nil
}
