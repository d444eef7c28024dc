// Each remedy that `penstock plan` prints is typed, and then it fits.
#include "tests/support/command.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

enum { WORDS_MAX = 60, WORD_SIZE = 1024 };

static struct command c;

// A command line; each flag is a word, its value the next.
struct line {
    int n;
    char words[WORDS_MAX][WORD_SIZE];
};

static void add(struct line *l, const char *words)
{
    while (*words != '\0') {
        size_t n = strcspn(words, " ");
        assert_true(l->n < WORDS_MAX && n < WORD_SIZE);
        snprintf(l->words[l->n++], WORD_SIZE, "%.*s", (int) n, words);
        words += n + (words[n] == ' ');
    }
}

static void print(const struct line *l, char *text, size_t n)
{
    size_t at = 0;
    for (int i = 0; i < l->n && at < n; i++) {
        at += (size_t) snprintf(text + at, n - at, "%s%s", i > 0 ? " " : "", l->words[i]);
    }
}

// The flag and, if it has one, its value.
static void drop(struct line *l, const char *flag)
{
    for (int i = 0; i < l->n; i++) {
        if (strcmp(l->words[i], flag) != 0) continue;
        int n = i + 1 < l->n && l->words[i + 1][0] != '-' ? 2 : 1;
        memmove(l->words[i], l->words[i + n], (size_t) (l->n - i - n) * WORD_SIZE);
        l->n -= n;
        return;
    }
}

static bool has(const struct line *l, const char *flag)
{
    for (int i = 0; i < l->n; i++) {
        if (strcmp(l->words[i], flag) == 0) return true;
    }
    return false;
}

// What stands before the colon, in place of what was there.
static void apply(struct line *l, const char *remedy)
{
    const char *end = strstr(remedy, ": ");
    static char flags[4096];
    bool without = false;
    static struct line change;
    assert_non_null(end);
    snprintf(flags, sizeof flags, "%.*s", (int) (end - remedy), remedy);
    change.n = 0;
    add(&change, flags);
    for (int i = 0; i < change.n; i++) {
        const char *word = change.words[i];
        if (strcmp(word, "without") == 0) {
            without = true;
            continue;
        }
        if (without) assert_true(has(l, word));
        if (word[0] == '-') drop(l, word);
        if (!without) add(l, word);
        without = false;
    }
}

static int run(const struct line *l)
{
    const char *words[WORDS_MAX + 3] = {"plan", "--json"};
    for (int i = 0; i < l->n; i++) words[i + 2] = l->words[i];
    command_start(&c, cmd_plan, words, NULL);
    return command_wait(&c);
}

// Tries all remedies of the command line; their number, -1 if it fits, -2 if it is refused as
// making no sense.
static int try_remedies(const char *model, const char *flags)
{
    static struct line asked, changed;
    char text[8192];
    asked.n = 0;
    add(&asked, "--model");
    snprintf(text, sizeof text, FIXTURES "/%s", model);
    add(&asked, text);
    add(&asked, flags);
    int status = run(&asked);
    if (status != 1) return status == 0 ? -1 : -2;
    json_t *o = json_loads(c.out_text, 0, NULL);
    const json_t *remedies = json_object_get(o, "remedies");
    int n = (int) json_array_size(remedies);
    if (n == 0) fail_msg("%s %s: no remedies", model, flags);
    for (int i = 0; i < n; i++) {
        const char *remedy = json_string_value(json_array_get(remedies, (size_t) i));
        changed = asked;
        apply(&changed, remedy);
        print(&changed, text, sizeof text);
        if (run(&changed) != 0) {
            fail_msg("%s %s\nremedy %s\nas typed: %s\n%s%s", model, flags, remedy, text,
                     c.out_text, c.err_text);
        }
    }
    json_decref(o);
    return n;
}

static void test_of_a_rack(void **state)
{
    (void) state;
    static const char *const CASES[] = {
        "--nodes 3 --gpus 8 --vram 24564MiB",
        "--nodes 3 --gpus 8 --vram 24564MiB --mtp --precision f32 --reserve 1G",
        "--nodes 4 --gpus 8 --vram 24564MiB --reserve 9GiB",
        "--nodes 4 --gpus 8 --vram 24564MiB --kv-blocks 3500 --slots 1 --mtp",
        "--nodes 4 --gpus 8 --vram 24564MiB --layers 1,1,1,58",
        "--nodes 4 --gpus 8 --vram 24564MiB --layers 1,1,1,58 --pp 4",
        "--nodes 4 --gpus 8 --vram 24564MiB --layers 61",
        "--nodes 4 --gpus 8 --vram 24564MiB --pp 3",
        "--nodes 1 --gpus 8 --vram 24564MiB --pp 4 --tp 2",
        "--nodes 2 --gpus 8 --vram 24564MiB --tp 4 --layers 20,20,21",
        "--nodes 4 --gpus 8 --vram 60GiB,4GiB,4GiB,4GiB",
        "--nodes 4 --gpus 8 --vram 60GiB,4GiB,4GiB,3GiB",
        "--nodes 4 --gpus 8 --vram 60GiB,4GiB,4GiB,3GiB --pp 3",
        "--nodes 2 --gpus 8 --vram 24000000001,24G --rates h100,rtx4090",
        "--nodes 3 --gpus 8 --vram 24564MiB --rates h100,h100,cpu --objective time",
        "--nodes 3 --gpus 8 --vram 24564MiB --objective time",
        "--nodes 2 --gpus 2 --vram 64MiB",
        "--nodes 2 --gpus 2 --vram 64MiB --device cuda",
        "--nodes 100 --gpus 1 --vram 8GiB",
        "--nodes 4096 --gpus 1 --vram 1GiB --pp 2",
        "--nodes 1 --gpus 64 --tp 64 --vram 4GiB",
        "--nodes 4 --gpus 8 --vram 24564MiB --kv-blocks 10 --max-context 4096",
        "--nodes 1 --gpus 1 --vram 1GiB --kv-blocks 10 --max-context 4096",
        "--nodes 4 --gpus 8 --vram 24564MiB --kv-blocks 100000",
        "--nodes 4 --gpus 8 --vram 24564MiB --kv-blocks 100000 --max-context 100000 --slots 64",
        "--vram 1M --reserve 1048576T",
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        int n = try_remedies("deepseek-v3", CASES[i]);
        if (n <= 0) fail_msg("%s: %s", CASES[i], n == -1 ? "fits" : "makes no sense");
    }
}

// More nodes with values of their own than can have stages.
static void test_of_many_nodes_that_differ(void **state)
{
    (void) state;
    char flags[WORD_SIZE + 64] = "--nodes 70 --gpus 1 --tp 1 --vram 2GiB";
    for (int i = 1; i < 70; i++) strcat(flags, i % 2 == 0 ? ",2GiB" : ",3000MiB");
    assert_true(try_remedies("deepseek-v3", flags) > 0);
}

static uint64_t random_state = 7;

static int any(int least, int most)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return least + (int) ((random_state >> 33) % (uint64_t) (most - least + 1));
}

__attribute__((format(printf, 2, 3))) static void put(char *flags, const char *format, ...)
{
    size_t n = strlen(flags);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(flags + n, WORD_SIZE - n, format, arguments);
    va_end(arguments);
}

// Of a model with n layers, whose devices have `mib` or thereabouts.
static void draw(char *flags, int n_layers, int mib)
{
    static const char *const NAMES[] = {"rtx4090", "h100", "cpu"};
    int nodes = any(1, 5), log = any(0, 3), gpus = 1 << log, tp = gpus, pp = 0;
    flags[0] = '\0';
    put(flags, "--nodes %d --gpus %d --vram %dMiB", nodes, gpus, any(1, mib));
    for (int i = 1, differ = any(0, 2); differ == 0 && i < nodes; i++) {
        put(flags, ",%dMiB", any(1, mib));
    }
    if (any(0, 2) == 0) put(flags, " --tp %d", tp = 1 << any(0, log));
    int most = nodes * (gpus / tp) < n_layers ? nodes * (gpus / tp) : n_layers;
    if (any(0, 2) == 0) put(flags, " --pp %d", pp = any(1, most));
    if (any(0, 3) == 0) {
        int stages = pp > 0 ? pp : any(1, most), left = n_layers;
        for (int i = 0; i < stages; i++) {
            int n = i == stages - 1 ? left : any(1, left - (stages - 1 - i));
            put(flags, "%s%d", i == 0 ? " --layers " : ",", n);
            left -= n;
        }
    }
    for (int i = 0, rates = any(0, 3); rates == 0 && i < nodes; i++) {
        put(flags, "%s%s", i == 0 ? " --rates " : ",", NAMES[any(0, 2)]);
    }
    if (any(0, 4) == 0) put(flags, " --objective time");
    if (any(0, 4) == 0) put(flags, " --device %s", any(0, 1) == 0 ? "cpu" : "cuda");
    if (any(0, 2) == 0) put(flags, " --kv-blocks %d", any(1, 1 << any(1, 20)));
    if (any(0, 2) == 0) put(flags, " --max-context %d", any(1, 4096));
    if (any(0, 3) == 0) put(flags, " --slots %d", any(1, 1 << any(1, 12)));
    if (any(0, 3) == 0) put(flags, " --max-rows %d", any(1, 1 << any(1, 13)));
    if (any(0, 2) == 0) put(flags, " --precision f32");
    if (any(0, 3) == 0) put(flags, " --mtp");
    if (any(0, 3) == 0) put(flags, " --reserve %dMiB", any(1, mib));
}

static void test_of_random_requests(void **state)
{
    (void) state;
    int n_refused = 0, n_remedies = 0;
    for (int i = 0; i < 160; i++) {
        char flags[WORD_SIZE];
        bool tiny = i % 16 != 0;
        draw(flags, tiny ? 5 : 61, tiny ? 24 : 32000);
        int n = try_remedies(tiny ? "tiny-fp8" : "deepseek-v3", flags);
        if (n <= 0) continue;
        n_refused++;
        n_remedies += n;
    }
    assert_true(n_refused > 40 && n_remedies > 120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_a_rack),
        cmocka_unit_test(test_of_many_nodes_that_differ),
        cmocka_unit_test(test_of_random_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
