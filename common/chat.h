// Chats in DeepSeek-V3's format: messages (OpenAI's JSON) to the text and the ids of a prompt. The
// templates are code here, chosen by the hash of `chat_template` in tokenizer_config.json.
// Immutable after load; any thread.
#ifndef PENSTOCK_COMMON_CHAT_H
#define PENSTOCK_COMMON_CHAT_H

#include "common/buffer.h"
#include "common/status.h"
#include "common/tokenizer.h"

struct json_t; // jansson
struct chat;

// Reads tokenizer_config.json in `dir`. OK also where there is no such file, no chat_template, or
// an unknown one: then chat_render says template_unknown, and nothing else suffers. ERR_INPUT
// bad_tokenizer_config if the file is malformed.
enum status chat_load(struct chat **chat, const char *dir, struct error *e);
void chat_destroy(struct chat **chat);

// Renders `messages` (a non-empty array) with the generation prompt behind it, byte-exact to the
// model's own template, into `text` (appended; not NULL). ERR_UNSUPPORTED template_unknown;
// ERR_INPUT bad_messages names the message and what is wrong with it; ERR_LIMIT, ERR_NOMEM.
enum status chat_render(const struct chat *chat, const struct json_t *messages, struct buffer *text,
                        struct error *e);

// The same as ids: the template's own special strings become their ids, BOS included; special
// strings inside messages' content are ordinary text. Errors: as chat_render and tokenizer_encode.
enum status chat_encode(const struct chat *chat, const struct tokenizer *t,
                        struct tokenizer_scratch *s, const struct json_t *messages,
                        struct token_ids *to, struct error *e);

#endif
