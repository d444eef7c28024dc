package penstock

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

// Job is what is asked for. Zero values are left out. The same Job may be enqueued again: its ID
// stays, so it runs once.
type Job struct {
	Op   string // chat, completion, tokens, map_reduce
	Body any    // an OpenAI request body: a map or struct, or its JSON text as json.RawMessage
	ID   string // made by Enqueue and Bulk if empty

	Model    string
	Class    int   // priority, 0 goes first
	At       int64 // ms since 1970: not before
	Deadline int64 // ms since 1970
	TTL      int64 // ms
	Attempts int
	Stream   bool
	CustomID string
	Batch    string
	Meta     map[string]string

	Since string // last event before the push; set by Enqueue
}

// As it is sent.
type message struct {
	V        int               `msgpack:"v"`
	ID       string            `msgpack:"id"`
	Op       string            `msgpack:"op"`
	Body     any               `msgpack:"body,omitempty"`
	Model    string            `msgpack:"model,omitempty"`
	Class    int               `msgpack:"class,omitempty"`
	At       int64             `msgpack:"at,omitempty"`
	Deadline int64             `msgpack:"deadline,omitempty"`
	TTL      int64             `msgpack:"ttl,omitempty"`
	Attempts int               `msgpack:"attempts,omitempty"`
	Stream   bool              `msgpack:"stream,omitempty"`
	CustomID string            `msgpack:"custom_id,omitempty"`
	Batch    string            `msgpack:"batch,omitempty"`
	Meta     map[string]string `msgpack:"meta,omitempty"`
}

func (j *Job) pack() ([]byte, error) {
	body := j.Body
	if text, ok := body.(json.RawMessage); ok {
		body = string(text)
	}
	return msgpack.Marshal(&message{1, j.ID, j.Op, body, j.Model, j.Class, j.At, j.Deadline, j.TTL,
		j.Attempts, j.Stream, j.CustomID, j.Batch, j.Meta})
}

func (j *Job) name() error {
	if j.ID != "" {
		return nil
	}
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	j.ID = hex.EncodeToString(random[:])
	return nil
}

// Result is what became of a job. Fields of later versions are in Raw alone.
type Result struct {
	ID           string     `msgpack:"id"`
	Status       string     `msgpack:"status"` // ok, error, cancelled, expired
	Text         string     `msgpack:"text"`
	Tokens       []int32    `msgpack:"tokens"`
	FinishReason string     `msgpack:"finish_reason"` // stop, length
	CustomID     string     `msgpack:"custom_id"`
	Logprobs     []Logprob  `msgpack:"logprobs"`
	Usage        Usage      `msgpack:"usage"`
	Attempts     int        `msgpack:"attempts"`
	Error        *ErrorInfo `msgpack:"error"`
	Raw          []byte     `msgpack:"-"` // the whole msgpack map
}

// Logprob is of one token; Top holds the most likely ones in its place.
type Logprob struct {
	ID      int32     `msgpack:"id"`
	Logprob float64   `msgpack:"logprob"`
	Bytes   []byte    `msgpack:"bytes"`
	Top     []Logprob `msgpack:"top"`
}

// Usage counts tokens.
type Usage struct {
	Prompt     int `msgpack:"prompt"`
	Cached     int `msgpack:"cached"`
	Completion int `msgpack:"completion"`
}

// ErrorInfo says why a job failed.
type ErrorInfo struct {
	Code      string `msgpack:"code"` // for programs; id_conflict: the id belongs to another job
	Message   string `msgpack:"message"`
	Retryable bool   `msgpack:"retryable"` // the same job may pass later
}

// OK says whether the job was done.
func (r *Result) OK() bool { return r.Status == "ok" }

func readResult(raw []byte) (*Result, error) {
	r := &Result{Raw: raw}
	if err := msgpack.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("the result cannot be read: %w", err)
	}
	return r, nil
}

func failed(id, code, why string) *Result {
	return &Result{ID: id, Status: "error", Error: &ErrorInfo{Code: code, Message: why}}
}

// The result that belongs to an event of the job; raw nil: it is gone.
func endedBy(id, event string, raw []byte) (*Result, error) {
	if event == conflict {
		return failed(id, conflict, "the id belongs to another job"), nil
	}
	if raw == nil {
		return failed(id, "result_gone", "the job has ended; its result has expired"), nil
	}
	return readResult(raw)
}

var errTwice = errors.New("penstock: two jobs of a bulk have the same id")
