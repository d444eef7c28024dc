#include "workers/loading.h"

#include "common/bars.h"
#include "common/log.h"

#include <unistd.h>

enum { PERIOD_MS = 2000 };

void loading_turn(struct loading *l, const char *name, int stage_number, const struct stage *stage,
                  int64_t now_ms)
{
    uint64_t loaded, total;
    stage_progress(stage, &loaded, &total);
    if (l->name == NULL) l->said_ms = now_ms;
    l->name = name;
    bars_show(name, loaded, total, now_ms);
    if (isatty(STDERR_FILENO) == 1 || now_ms - l->said_ms < PERIOD_MS) return;
    l->said_ms = now_ms;
    log_line(LOG_INFO, "loading", log_int("stage", stage_number), log_int("loaded_bytes", loaded),
             log_int("load_bytes", total));
}

void loading_end(struct loading *l)
{
    if (l->name != NULL) bars_drop(l->name);
    l->name = NULL;
}

void loading_report(int stage_number, const struct stage *stage, const struct manifest *manifest,
                    const char *file)
{
    struct ledger ledger = stage_ledger(stage);
    char lines[LEDGER_TEXT_MAX];
    uint64_t loaded, total;
    struct ledger pinned = stage_host_ledger(stage);
    ledger_print(&ledger, lines, sizeof lines);
    stage_progress(stage, &loaded, &total);
    log_line(LOG_INFO, "loaded", log_int("stage", stage_number),
             log_int("total_bytes", ledger_total(&ledger)), log_str("ledger", lines),
             log_int("read_bytes", total), log_int("read_ms", stage_load_ns(stage) / 1000000));
    if (ledger_total(&pinned) > 0) {
        ledger_print(&pinned, lines, sizeof lines);
        log_line(LOG_INFO, "pinned", log_int("stage", stage_number),
                 log_int("bytes", ledger_total(&pinned)), log_str("ledger", lines));
    }
    if (manifest == NULL) return;
    log_line(LOG_INFO, "manifest", log_str("file", file),
             log_int("compared", manifest_n_compared(manifest)),
             log_int("learnt", manifest_n_learnt(manifest)));
}
