"""The bundled bulk file: held-out lines as OpenAI batch lines, and the expected answer of each."""
import argparse
import json

import lines

SEED = 3


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", help="directory to write bulk.jsonl and expected.jsonl into")
    p.add_argument("--n", type=int, default=240)
    a = p.parse_args()
    with open(f"{a.model}/bulk.jsonl", "w", encoding="utf-8") as tickets, open(
        f"{a.model}/expected.jsonl", "w", encoding="utf-8"
    ) as expected:
        for i, (line, answer) in enumerate(lines.held_out_lines(SEED, a.n), 1):
            name = f"ticket-{i:04}"
            messages = [{"role": "user", "content": lines.INSTRUCTION + line}]
            body = {"messages": messages, "max_tokens": 96, "temperature": 0}
            job = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            tickets.write(json.dumps(job) + "\n")
            expected.write(json.dumps({"custom_id": name, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
