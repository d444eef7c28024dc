// One job with its tokens as they come, then many with a bounded window. Queue by environment:
// PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"penstock"
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func chat(text string) *penstock.Job {
	message := map[string]any{"role": "user", "content": text}
	return &penstock.Job{Op: "chat", Body: map[string]any{"messages": []any{message},
		"max_tokens": 96, "temperature": 0}}
}

func run(ctx context.Context) error {
	client, err := penstock.Open(setting("PENSTOCK_REDIS", "redis://127.0.0.1:6379"),
		setting("PENSTOCK_QUEUE", "default"), setting("PENSTOCK_TENANT", "default"))
	if err != nil {
		return err
	}
	defer client.Close()
	job := chat("Extract JSON: reviews - WARN - sent 57862 mails, 2ms")
	job.Stream = true
	if err := client.Enqueue(ctx, job); err != nil {
		return err
	}
	_, err = client.Stream(ctx, job, 0, func(piece string) error {
		_, err := fmt.Print(piece)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Println()
	i, bad := 0, 0
	next := func() (*penstock.Job, error) {
		if i++; i > 20 {
			return nil, io.EOF
		}
		return chat(fmt.Sprintf("Extract JSON: WARN - billing - took %dms", i)), nil
	}
	err = client.Bulk(ctx, 8, next, func(job *penstock.Job, r *penstock.Result) error {
		if r.OK() {
			fmt.Println(job.ID, r.Text)
			return nil
		}
		bad++
		fmt.Println(job.ID, r.Error.Message)
		return nil
	})
	if err == nil && bad > 0 {
		err = fmt.Errorf("%d jobs failed", bad)
	}
	return err
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
