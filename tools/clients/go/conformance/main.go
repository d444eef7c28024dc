// What `penstock conformance producer` talks to: wishes as JSON lines in, replies out.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"penstock"
)

type wish struct {
	Do, Op, ID string
	Body       json.RawMessage
	Fields     struct {
		Class    int
		At       int64
		Deadline int64
		TTL      int64
		Attempts int
		Model    string
		Batch    string
		CustomID string `json:"custom_id"`
		Stream   bool
		Meta     map[string]string
	}
	Timeout           float64
	Offset, N, Window int
	Prefix            string
}

type reply map[string]any

var jobs = map[string]*penstock.Job{}

func jobOf(id string) *penstock.Job {
	if job := jobs[id]; job != nil {
		return job
	}
	return &penstock.Job{ID: id}
}

func shown(id string, r *penstock.Result, err error) (reply, error) {
	if errors.Is(err, penstock.ErrNone) {
		return reply{"id": id, "status": nil}, nil
	}
	if err != nil {
		return nil, err
	}
	said := reply{"id": id, "status": r.Status, "text": r.Text, "finish_reason": r.FinishReason,
		"custom_id": r.CustomID}
	if r.Error != nil {
		said["error"] = r.Error.Code
	}
	return said, nil
}

func enqueue(ctx context.Context, c *penstock.Client, w wish) (reply, error) {
	f := w.Fields
	job := &penstock.Job{Op: w.Op, Body: w.Body, ID: w.ID, Model: f.Model, Class: f.Class,
		At: f.At, Deadline: f.Deadline, TTL: f.TTL, Attempts: f.Attempts, Stream: f.Stream,
		CustomID: f.CustomID, Batch: f.Batch, Meta: f.Meta}
	if err := c.Enqueue(ctx, job); err != nil {
		return nil, err
	}
	jobs[job.ID] = job
	return reply{"id": job.ID}, nil
}

func bulk(ctx context.Context, c *penstock.Client, w wish) (reply, error) {
	i, results := 0, map[string]string{}
	next := func() (*penstock.Job, error) {
		if i == w.N {
			return nil, io.EOF
		}
		id := fmt.Sprintf("%s-%d", w.Prefix, i)
		i++
		body := map[string]any{"prompt": id, "max_tokens": 16}
		return &penstock.Job{Op: "completion", ID: id, Body: body}, nil
	}
	err := c.Bulk(ctx, w.Window, next, func(job *penstock.Job, r *penstock.Result) error {
		results[job.ID] = r.Text
		if !r.OK() {
			results[job.ID] = r.Error.Code
		}
		return nil
	})
	return reply{"results": results}, err
}

func grant(c *penstock.Client, w wish) (reply, error) {
	ctx := context.Background()
	if w.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(w.Timeout*float64(time.Second)))
		defer cancel()
	}
	switch w.Do {
	case "enqueue":
		return enqueue(ctx, c, w)
	case "wait":
		r, err := c.Wait(ctx, jobOf(w.ID))
		return shown(w.ID, r, err)
	case "result":
		r, err := c.Result(ctx, w.ID)
		return shown(w.ID, r, err)
	case "stream":
		var pieces []string
		_, err := c.Stream(ctx, jobOf(w.ID), w.Offset, func(piece string) error {
			pieces = append(pieces, piece)
			return nil
		})
		return reply{"id": w.ID, "text": strings.Join(pieces, ""), "pieces": len(pieces)}, err
	case "cancel":
		return reply{"id": w.ID}, c.Cancel(ctx, w.ID)
	case "bulk":
		return bulk(ctx, c, w)
	}
	return reply{"unsupported": true}, nil
}

func main() {
	c, err := penstock.Open(os.Getenv("PENSTOCK_REDIS"), os.Getenv("PENSTOCK_QUEUE"),
		os.Getenv("PENSTOCK_TENANT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	defer c.Close()
	lines := bufio.NewReader(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var w wish
		var said reply
		if err = json.Unmarshal(line, &w); err == nil {
			said, err = grant(c, w)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			said = reply{"timeout": true}
		} else if err != nil {
			said = reply{"failure": err.Error()}
		}
		if out.Encode(said) != nil {
			return
		}
	}
}
