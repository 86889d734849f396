/* What a process does to the files of one folder, seen from below: loaded with LD_PRELOAD.

   Environment:
     SHIM_ROOT   the folder; files elsewhere are left alone
     SHIM_LOG    records every change (RECORD below), for power cuts; empty: none
     SHIM_KILL   the number of the change before which the process is killed; empty: none
   The disk is never waited for: nothing here loses what the system keeps in memory.
   shim_kill_at(n) makes the n-th change from now on kill the process before it happens;
   shim_full_from(n, m) lets m changes that need space fail with ENOSPC, from the n-th on;
   shim_count() returns the number of changes so far.

   Changes of memory that SQLite's processes share (-shm) are not seen: nothing needs them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long count, kill_at = -1, full_from = -1, full_to = -1;
static char root[PATH_MAX];
static int log_fd = -2; /* not opened yet */

#define REAL(name, type) \
    static __typeof__(type) real; \
    if (!real) real = (__typeof__(type))dlsym(RTLD_NEXT, name)

void shim_kill_at(long n) { kill_at = n < 0 ? -1 : count + n; }
void shim_full_from(long n, long m) { full_from = count + n; full_to = count + n + m; }
long shim_count(void) { return count; }

static void start(void) {
    if (log_fd != -2) return;
    const char *folder = getenv("SHIM_ROOT"), *log = getenv("SHIM_LOG"), *at = getenv("SHIM_KILL");
    log_fd = -1;
    if (at && *at) kill_at = atol(at);
    if (folder) snprintf(root, sizeof root, "%s/", folder);
    if (log && *log) log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int inside(const char *path) {
    start();
    if (!*root) return 0;
    size_t n = strlen(root);
    return !strncmp(path, root, n) || (strlen(path) == n - 1 && !strncmp(path, root, n - 1));
}

static int absolute(int dir, const char *path, char *out) {
    char base[PATH_MAX];
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return inside(out); }
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
    }
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    return inside(out);
}

static int of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (n < 0) return 0;
    out[n] = 0;
    size_t length = (size_t)n;
    if (length > 4 && !strcmp(out + length - 4, "-shm")) return 0;
    if (length > 10 && !strcmp(out + length - 10, " (deleted)")) return 0;
    return inside(out);
}

/* RECORD: a line "OP offset length pathlength otherlength\n", then path, other path, data. */
static void record(const char *op, const char *path, const char *other, off_t offset, const void *data, size_t n) {
    if (log_fd < 0) return;
    char head[96];
    size_t a = strlen(path), b = strlen(other);
    int h = snprintf(head, sizeof head, "%s %lld %zu %zu %zu\n", op, (long long)offset, n, a, b);
    struct iovec parts[] = {{head, (size_t)h}, {(void *)path, a}, {(void *)other, b}, {(void *)data, n}};
    if (syscall(SYS_writev, log_fd, parts, 4) < 0) abort();
}

/* Count a change; return 0 if it must fail for lack of space. */
static int change(int needs_space) {
    long now = __sync_fetch_and_add(&count, 1);
    if (kill_at >= 0 && now >= kill_at) syscall(SYS_kill, getpid(), SIGKILL);
    if (needs_space && now >= full_from && now < full_to) { errno = ENOSPC; return 0; }
    return 1;
}

static ssize_t written(int fd, off_t offset, const void *data, size_t n, int at_offset) {
    REAL("write", ssize_t (*)(int, const void *, size_t));
    static ssize_t (*real_p)(int, const void *, size_t, off_t);
    if (!real_p) real_p = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    char path[PATH_MAX];
    int ours = of_fd(fd, path);
    if (ours && !change(1)) return -1;
    if (ours && !at_offset)
        offset = (fcntl(fd, F_GETFL) & O_APPEND) ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = at_offset ? real_p(fd, data, n, offset) : real(fd, data, n);
    if (ours && done > 0) record("write", path, "", offset, data, (size_t)done);
    return done;
}

ssize_t write(int fd, const void *data, size_t n) { return written(fd, 0, data, n, 0); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return written(fd, offset, data, n, 1); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) { return written(fd, offset, data, n, 1); }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL("writev", ssize_t (*)(int, const struct iovec *, int));
    char path[PATH_MAX];
    if (!of_fd(fd, path)) return real(fd, parts, n);
    ssize_t total = 0;
    for (int i = 0; i < n; i++) {
        ssize_t done = written(fd, 0, parts[i].iov_base, parts[i].iov_len, 0);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

static int truncated(int fd, off_t size) {
    REAL("ftruncate", int (*)(int, off_t));
    char path[PATH_MAX];
    int ours = of_fd(fd, path);
    if (ours && !change(0)) return -1;
    int status = real(fd, size);
    if (ours && !status) record("truncate", path, "", size, "", 0);
    return status;
}
int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

int fsync(int fd) {
    char path[PATH_MAX];
    if (fcntl(fd, F_GETFD) < 0) return -1;
    if (!of_fd(fd, path)) return 0;
    if (!change(1)) return -1;
    record("sync", path, "", 0, "", 0);
    return 0;
}
int fdatasync(int fd) { return fsync(fd); }

static int opened(int dir, const char *name, int flags, mode_t mode, const char *call) {
    int (*real)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, call);
    char path[PATH_MAX];
    int ours = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE && absolute(dir, name, path);
    struct stat before;
    int existed = ours && !stat(path, &before);
    if (ours && !existed && !(flags & O_CREAT)) ours = 0;
    if (ours && (!existed || ((flags & O_TRUNC) && before.st_size)) && !change(!existed)) return -1;
    int fd = real(dir, name, flags, mode);
    if (ours && fd >= 0) {
        size_t n = strlen(path);
        if (n > 4 && !strcmp(path + n - 4, "-shm")) return fd;
        if (!existed) record("create", path, "", 0, "", 0);
        else if ((flags & O_TRUNC) && before.st_size) record("truncate", path, "", 0, "", 0);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}
#define OPEN(name, call) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest); \
        return opened(AT_FDCWD, path, flags, mode, call); }
#define OPENAT(name, call) \
    int name(int dir, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest); \
        return opened(dir, path, flags, mode, call); }
OPEN(open, "openat")
OPEN(open64, "openat64")
OPENAT(openat, "openat")
OPENAT(openat64, "openat64")

/* Streams of C and C++ open and write inside of the C library, past these functions. */
FILE *fopen64(const char *name, const char *how) {
    REAL("fopen64", FILE *(*)(const char *, const char *));
    char path[PATH_MAX];
    int ours = how[0] != 'r' && absolute(AT_FDCWD, name, path);
    struct stat before;
    int existed = ours && !stat(path, &before);
    if (ours && !change(!existed)) return NULL;
    FILE *file = real(name, how);
    if (ours && file) record(existed ? "truncate" : "create", path, "", 0, "", 0);
    return file;
}
FILE *fopen(const char *name, const char *how) { return fopen64(name, how); }

static int renamed(int a, const char *from, int b, const char *to) {
    REAL("renameat", int (*)(int, const char *, int, const char *));
    char path[PATH_MAX], other[PATH_MAX];
    int ours = absolute(a, from, path) & absolute(b, to, other);
    if (ours && !change(0)) return -1;
    int status = real(a, from, b, to);
    if (ours && !status) record("rename", path, other, 0, "", 0);
    return status;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int a, const char *from, int b, const char *to) { return renamed(a, from, b, to); }

static int unlinked(int dir, const char *name, int flags) {
    REAL("unlinkat", int (*)(int, const char *, int));
    char path[PATH_MAX];
    int ours = absolute(dir, name, path);
    if (ours && !change(0)) return -1;
    int status = real(dir, name, flags);
    if (ours && !status) record("unlink", path, "", 0, "", 0);
    return status;
}
int unlink(const char *name) { return unlinked(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinked(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int dir, const char *name, int flags) { return unlinked(dir, name, flags); }

int mkdirat(int dir, const char *name, mode_t mode) {
    REAL("mkdirat", int (*)(int, const char *, mode_t));
    char path[PATH_MAX];
    int ours = absolute(dir, name, path);
    if (ours && !change(1)) return -1;
    int status = real(dir, name, mode);
    if (ours && !status) record("mkdir", path, "", 0, "", 0);
    return status;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
