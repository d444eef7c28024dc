#include "tools/top_screen.h"

#include "common/buffer.h"
#include "common/limits.h"
#include "tools/top_page.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

enum { ROWS_LEAST = 5, ROWS_OTHERWISE = 24, COLUMNS_OTHERWISE = 80 };
#define FRAME_MAX (1 * MIB)

// ESC sequences: alternate screen, cursor, and an update that a terminal may show at once.
#define ENTER "\033[?1049h\033[?25l\033[2J"
#define LEAVE "\033[0m\033[?25h\033[?1049l"
#define BEGIN "\033[?2026h\033[H"
#define END "\033[J\033[?2026l"

static struct termios before;
static volatile sig_atomic_t is_open;
static const int crashes[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

static void write_all(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(STDOUT_FILENO, bytes, n);
        if (done < 0 && errno != EINTR) return;
        if (done > 0) bytes += done, n -= (size_t) done;
    }
}

// Safe in a signal handler.
static void restore(void)
{
    if (!is_open) return;
    is_open = 0;
    write_all(LEAVE, sizeof LEAVE - 1);
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void on_crash(int signal_number)
{
    restore();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void enter(void)
{
    struct termios raw = before;
    raw.c_lflag &= ~(tcflag_t) (ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    is_open = 1;
    write_all(ENTER, sizeof ENTER - 1);
}

static int bounded(int n, int least, int most) { return n < least ? least : n > most ? most : n; }

static void measure(struct screen *s)
{
    struct winsize w;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 && w.ws_row > 0;
    s->columns = bounded(known ? w.ws_col : COLUMNS_OTHERWISE, TOP_COLUMNS_LEAST, TOP_COLUMNS_MOST);
    s->rows = bounded(known ? w.ws_row : ROWS_OTHERWISE, ROWS_LEAST, INT16_MAX);
}

int screen_columns(void)
{
    struct winsize w;
    const char *text = getenv("COLUMNS");
    int n = text != NULL ? atoi(text) : 0;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0) n = w.ws_col;
    return bounded(n > 0 ? n : COLUMNS_OTHERWISE, TOP_COLUMNS_LEAST, TOP_COLUMNS_MOST);
}

enum status screen_open(struct screen *s, struct error *e)
{
    sigset_t set;
    *s = (struct screen){.signals = -1};
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
        return error_set(e, ERR_INPUT, "bad_usage", "this is no terminal: --once prints one page");
    }
    if (tcgetattr(STDIN_FILENO, &before) != 0) {
        return error_set(e, ERR_IO, NULL, "the terminal does not answer: %s", strerror(errno));
    }
    sigemptyset(&set);
    const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) sigaddset(&set, ends[i]);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signals < 0) return error_set(e, ERR_IO, NULL, "no signalfd: %s", strerror(errno));
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++) signal(crashes[i], on_crash);
    atexit(restore);
    measure(s);
    enter();
    return OK;
}

void screen_close(struct screen *s)
{
    restore();
    if (s->signals >= 0) close(s->signals);
    s->signals = -1;
}

// --- showing

static int count_lines(const char *page, size_t n)
{
    int lines = 0;
    for (size_t i = 0; i < n; i++) lines += page[i] == '\n';
    return lines;
}

void screen_show(struct screen *s, const char *page, size_t n, int n_fixed)
{
    struct buffer frame;
    int lines = count_lines(page, n), most = lines - s->rows;
    s->scroll = bounded(s->scroll, 0, most > 0 ? most : 0);
    buffer_init(&frame, FRAME_MAX);
    buffer_append(&frame, BEGIN, sizeof BEGIN - 1);
    int line = 0, shown = 0;
    for (const char *p = page, *end = page + n; p < end && shown < s->rows; line++) {
        const char *next = memchr(p, '\n', (size_t) (end - p));
        size_t length = next != NULL ? (size_t) (next - p) : (size_t) (end - p);
        if (line < n_fixed || line >= n_fixed + s->scroll) {
            if (shown++ > 0) buffer_append(&frame, "\r\n", 2);
            buffer_append(&frame, p, length);
            buffer_append(&frame, "\033[K", 3);
        }
        p += length + 1;
    }
    buffer_append(&frame, END, sizeof END - 1);
    if (frame.status == OK) write_all((const char *) frame.data, frame.n);
    buffer_deinit(&frame);
}

// --- keys and signals

static enum screen_event on_signal(struct screen *s)
{
    struct signalfd_siginfo info;
    if (read(s->signals, &info, sizeof info) != sizeof info) return SCREEN_NOTHING;
    switch (info.ssi_signo) {
    case SIGWINCH: measure(s); return SCREEN_DRAW;
    case SIGTSTP: // it stops here, and goes on here
        restore();
        kill(getpid(), SIGSTOP);
        measure(s);
        enter();
        return SCREEN_DRAW;
    default: return SCREEN_QUIT;
    }
}

// A key, or the sequence of one that moves.
static enum screen_event on_key(struct screen *s, const char *key, ssize_t n)
{
    static const struct {
        const char *keys;
        int lines, pages;
    } moves[] = {{"k", -1, 0},       {"j", 1, 0},        {"\033[A", -1, 0}, {"\033[B", 1, 0},
                 {"\033OA", -1, 0},  {"\033OB", 1, 0},   {"b", 0, -1},      {" ", 0, 1},
                 {"\033[5~", 0, -1}, {"\033[6~", 0, 1},  {"g", INT16_MIN, 0},
                 {"G", INT16_MAX, 0}};
    if (key[0] == 'q' || key[0] == 'Q') return SCREEN_QUIT;
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
        size_t length = strlen(moves[i].keys);
        if ((size_t) n < length || memcmp(key, moves[i].keys, length) != 0) continue;
        s->scroll += moves[i].lines + moves[i].pages * (s->rows - TOP_HEAD_LINES - 1);
        if (s->scroll < 0) s->scroll = 0;
        return SCREEN_DRAW;
    }
    return SCREEN_NOTHING;
}

enum screen_event screen_wait(struct screen *s, int wake_fd, int timeout_ms)
{
    struct pollfd fds[] = {{STDIN_FILENO, POLLIN, 0}, {s->signals, POLLIN, 0},
                           {wake_fd, POLLIN, 0}};
    if (poll(fds, 3, timeout_ms) <= 0) return SCREEN_NOTHING;
    if (fds[1].revents != 0) return on_signal(s);
    if (fds[0].revents != 0) {
        char key[16];
        ssize_t n = read(STDIN_FILENO, key, sizeof key);
        // A terminal that has gone says so for ever.
        if (n <= 0) return fds[0].revents & (POLLHUP | POLLERR) ? SCREEN_QUIT : SCREEN_NOTHING;
        return on_key(s, key, n);
    }
    return fds[2].revents != 0 ? SCREEN_WOKEN : SCREEN_NOTHING;
}
