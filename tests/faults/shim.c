/* Lets something happen to one of the calls by which a process changes files below one folder.
 *
 * Preloaded (LD_PRELOAD), because the lake is written by Rust code, which no stand-in of Python's reaches. The test
 * arms it in a process of its own: fault_arm("/folder/", 7, KILL_AFTER) lets the call with the number 7 happen, and the
 * process ends right after it. fault_count() says how many calls there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, KILL_AFTER, TORN, NO_SPACE, IO_ERROR, SHORT, IO_ERROR_AFTER };

static char root[PATH_MAX];
static size_t root_length;
static int armed_at = -1, armed_kind = NOTHING;
static atomic_int counted;

void fault_arm(const char *folder, int at, int kind) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    armed_at = at;
    armed_kind = kind;
    atomic_store(&counted, 0);
}

int fault_count(void) { return atomic_load(&counted); }

static int is_ours(const char *path) { return root_length && path && strncmp(path, root, root_length) == 0; }

static int is_ours_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What is to happen to this call: counts it, and ends the process if it is to end before. */
static int due(int ours) {
    if (!ours) return NOTHING;
    int kind = atomic_fetch_add(&counted, 1) == armed_at ? armed_kind : NOTHING;
    if (kind == KILL_BEFORE) die();
    return kind;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define CALL(type, ours, call)                                  \
    int kind = due(ours);                                       \
    if (kind == NO_SPACE) { errno = ENOSPC; return -1; }        \
    if (kind == IO_ERROR) { errno = EIO; return -1; }           \
    if (kind == TORN) die();                                    \
    type result = (call);                                       \
    if (kind == KILL_AFTER) die();                              \
    if (kind == IO_ERROR_AFTER) { errno = EIO; return -1; }     \
    return result;

/* A write can also be cut: half of it happens, and the process ends, or the call says that it was half (which is allowed). */
#define WRITE(ours, call, half)                                 \
    int kind = due(ours);                                       \
    if (kind == NO_SPACE) { if (size > 1) (void)!(half); errno = ENOSPC; return -1; } \
    if (kind == IO_ERROR) { errno = EIO; return -1; }           \
    if (kind == TORN) { (void)!(half); die(); }                 \
    if (kind == SHORT && size > 1) return (half);               \
    ssize_t result = (call);                                    \
    if (kind == KILL_AFTER) die();                              \
    if (kind == IO_ERROR_AFTER) { errno = EIO; return -1; }     \
    return result;

ssize_t write(int fd, const void *data, size_t size) {
    WRITE(is_ours_fd(fd), REAL(write)(fd, data, size), REAL(write)(fd, data, size / 2))
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    WRITE(is_ours_fd(fd), REAL(pwrite)(fd, data, size, at), REAL(pwrite)(fd, data, size / 2, at))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    WRITE(is_ours_fd(fd), REAL(pwrite64)(fd, data, size, at), REAL(pwrite64)(fd, data, size / 2, at))
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    CALL(ssize_t, is_ours_fd(fd), REAL(writev)(fd, parts, count))
}
int fsync(int fd) { CALL(int, is_ours_fd(fd), REAL(fsync)(fd)) }
int fdatasync(int fd) { CALL(int, is_ours_fd(fd), REAL(fdatasync)(fd)) }
int ftruncate(int fd, off_t size) { CALL(int, is_ours_fd(fd), REAL(ftruncate)(fd, size)) }
int ftruncate64(int fd, off64_t size) { CALL(int, is_ours_fd(fd), REAL(ftruncate64)(fd, size)) }
int rename(const char *from, const char *to) { CALL(int, is_ours(to), REAL(rename)(from, to)) }
int renameat(int a, const char *from, int b, const char *to) { CALL(int, is_ours(to), REAL(renameat)(a, from, b, to)) }
int renameat2(int a, const char *from, int b, const char *to, unsigned int flags) {
    CALL(int, is_ours(to), REAL(renameat2)(a, from, b, to, flags))
}
int link(const char *from, const char *to) { CALL(int, is_ours(to), REAL(link)(from, to)) }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    CALL(int, is_ours(to), REAL(linkat)(a, from, b, to, flags))
}
int unlink(const char *path) { CALL(int, is_ours(path), REAL(unlink)(path)) }
int unlinkat(int at, const char *path, int flags) { CALL(int, is_ours(path), REAL(unlinkat)(at, path, flags)) }
int rmdir(const char *path) { CALL(int, is_ours(path), REAL(rmdir)(path)) }
int mkdir(const char *path, mode_t mode) { CALL(int, is_ours(path), REAL(mkdir)(path, mode)) }
int mkdirat(int at, const char *path, mode_t mode) { CALL(int, is_ours(path), REAL(mkdirat)(at, path, mode)) }

#define MODE                                     \
    mode_t mode = 0;                             \
    if (flags & (O_CREAT | O_TMPFILE)) {         \
        va_list list;                            \
        va_start(list, flags);                   \
        mode = va_arg(list, mode_t);             \
        va_end(list);                            \
    }

int open(const char *path, int flags, ...) {
    MODE CALL(int, (flags & (O_CREAT | O_TRUNC)) && is_ours(path), REAL(open)(path, flags, mode))
}
int open64(const char *path, int flags, ...) {
    MODE CALL(int, (flags & (O_CREAT | O_TRUNC)) && is_ours(path), REAL(open64)(path, flags, mode))
}
int openat(int at, const char *path, int flags, ...) {
    MODE CALL(int, (flags & (O_CREAT | O_TRUNC)) && is_ours(path), REAL(openat)(at, path, flags, mode))
}
int openat64(int at, const char *path, int flags, ...) {
    MODE CALL(int, (flags & (O_CREAT | O_TRUNC)) && is_ours(path), REAL(openat64)(at, path, flags, mode))
}
