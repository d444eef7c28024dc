// Tokenizers for tests: the true one where tests/run has fetched it, and small ones, complete in
// form, whose merges and special strings the test chooses.
#ifndef PENSTOCK_TESTS_TOKENIZER_FILES_H
#define PENSTOCK_TESTS_TOKENIZER_FILES_H

#include "common/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/model_dir.h"

// The folder with the true tokenizer.json. Skips the test, and says why, where there is none.
static inline const char *true_tokenizer_dir(void)
{
    static char path[512];
    const char *dirs[] = {getenv("PENSTOCK_TOKENIZER_DIR"), BUILD_DIR "/npm/package/models",
                          SOURCE_DIR "/build/npm/package/models"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        if (dirs[i] == NULL) continue;
        snprintf(path, sizeof path, "%s/tokenizer.json", dirs[i]);
        if (access(path, R_OK) == 0) return dirs[i];
    }
    print_message("# the true tokenizer.json is not here: PENSTOCK_TOKENIZER_DIR names its folder, "
                  "tests/run fetches it\n");
    skip();
    return NULL;
}

// Appends one byte as the byte-level alphabet writes it; returns the new end.
static inline char *alphabet_put(char *to, int byte)
{
    int character = byte, moved = 0x100;
    for (int i = 0; i <= byte; i++) {
        bool itself = (i >= '!' && i <= '~') || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
        character = itself ? i : moved++;
    }
    if (character < 0x80) {
        *to++ = (char) character;
    } else {
        *to++ = (char) (0xc0 | character >> 6);
        *to++ = (char) (0x80 | (character & 0x3f));
    }
    *to = 0;
    return to;
}

// A whole tokenizer.json: bytes have the ids 0 to 255, the results of `merges` ("left right", in
// the alphabet) follow, then the special strings <s> and <e>, and [x], which is none to decoders.
static inline json_t *small_tokenizer(const char *const *merges, int n_merges)
{
    json_t *vocab = json_object(), *list = json_array(), *added = json_array();
    for (int byte = 0; byte < 256; byte++) {
        char text[4];
        alphabet_put(text, byte);
        json_object_set_new(vocab, text, json_integer(byte));
    }
    for (int i = 0; i < n_merges; i++) {
        char text[256], *space;
        snprintf(text, sizeof text, "%s", merges[i]);
        json_array_append_new(list, json_string(text));
        space = strchr(text, ' ');
        memmove(space, space + 1, strlen(space));
        if (json_object_get(vocab, text) != NULL) continue;
        json_object_set_new(vocab, text, json_integer((json_int_t) json_object_size(vocab)));
    }
    static const char *const strings[] = {"<s>", "<e>", "[x]"};
    int id = (int) json_object_size(vocab);
    for (int i = 0; i < 3; i++) {
        json_array_append_new(added, json_pack("{si ss sb sb sb sb sb}", "id", id + i, "content",
                                               strings[i], "single_word", 0, "lstrip", 0, "rstrip",
                                               0, "normalized", i == 2, "special", i < 2));
    }
    json_t *split = json_pack("{ss s{ss} ss sb}", "type", "Split", "pattern", "Regex",
                              "\\p{N}{1,3}|\\p{L}+|\\s+|[^\\s\\p{L}\\p{N}]+", "behavior",
                              "Isolated", "invert", 0);
    json_t *level = json_pack("{ss sb sb sb}", "type", "ByteLevel", "add_prefix_space", 0,
                              "trim_offsets", 1, "use_regex", 0);
    return json_pack("{ss sn so s{ss s[oo]} s{ss} s{ss so so}}", "version", "1.0", "normalizer",
                     "added_tokens", added, "pre_tokenizer", "type", "Sequence", "pretokenizers",
                     split, level, "decoder", "type", "ByteLevel", "model", "type", "BPE", "vocab",
                     vocab, "merges", list);
}

// Writes it to a folder of its own and loads it; takes over `root`.
static inline enum status load_json(struct tokenizer **t, json_t *root, struct error *e)
{
    struct model_dir dir = model_dir_create();
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    model_dir_write(&dir, "tokenizer.json", text, strlen(text));
    free(text);
    enum status status = tokenizer_load(t, dir.path, e);
    model_dir_remove(&dir);
    return status;
}

#endif
