/* Loaded before all other libraries into a runner and all that it starts. A file that CLOCK_FILE names says how many
 * seconds the time of day is ahead. While a file that READ_ONLY_FILE names exists, the file system at READ_ONLY_DIR
 * answers as one does that the kernel has made read-only, for files that are open already too. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Straight to the kernel: the functions below must not call each other. */
#define KERNEL(name, ...) syscall(SYS_##name, __VA_ARGS__)

static long ahead(void) {
    char text[32] = {0};
    int before = errno;
    const char *path = getenv("CLOCK_FILE");
    int fd = path ? KERNEL(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (fd >= 0) {
        if (KERNEL(read, fd, text, sizeof text - 1) < 0) text[0] = 0;
        KERNEL(close, fd);
    }
    errno = before;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = KERNEL(clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

static int is_inside(const char *path) {
    const char *dir = getenv("READ_ONLY_DIR");
    size_t length = dir ? strlen(dir) : 0;
    return length && strncmp(path, dir, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int is_on(void) {
    const char *flag = getenv("READ_ONLY_FILE");
    return flag && KERNEL(faccessat, AT_FDCWD, flag, F_OK) == 0;
}

static int fd_is_inside(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = KERNEL(readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_inside(path);
}

static int refuses_fd(int fd) {
    int before = errno, refused = is_on() && fd_is_inside(fd);
    errno = refused ? EROFS : before;
    return refused;
}

static int refuses(int dir, const char *path) {
    int before = errno, refused = is_on();
    if (refused) refused = path[0] == '/' ? is_inside(path) : dir != AT_FDCWD && fd_is_inside(dir);
    errno = refused ? EROFS : before;
    return refused;
}

/* What is only read may be opened, and what is there need not be made. */
static int opened(int dir, const char *path, int flags, mode_t mode) {
    int changes = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    if ((changes || flags & O_CREAT) && refuses(dir, path)) {
        int is_there = KERNEL(faccessat, dir, path, F_OK) == 0;
        if (changes || !is_there) {
            errno = EROFS;
            return -1;
        }
    }
    return KERNEL(openat, dir, path, flags, mode);
}

#define MODE(last)                              \
    mode_t mode = 0;                            \
    if (flags & (O_CREAT | __O_TMPFILE)) {      \
        va_list list;                           \
        va_start(list, last);                   \
        mode = va_arg(list, int);               \
        va_end(list);                           \
    }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return opened(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return opened(dir, path, flags, mode); }

ssize_t write(int fd, const void *bytes, size_t count) {
    return refuses_fd(fd) ? -1 : KERNEL(write, fd, bytes, count);
}
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    return refuses_fd(fd) ? -1 : KERNEL(writev, fd, pieces, count);
}
int ftruncate64(int fd, off64_t length) { return refuses_fd(fd) ? -1 : KERNEL(ftruncate, fd, length); }
int fallocate(int fd, int mode, off_t at, off_t length) {
    return refuses_fd(fd) ? -1 : KERNEL(fallocate, fd, mode, at, length);
}

int rename(const char *from, const char *to) {
    return refuses(AT_FDCWD, to) ? -1 : KERNEL(renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int unlink(const char *path) {
    return refuses(AT_FDCWD, path) ? -1 : KERNEL(unlinkat, AT_FDCWD, path, 0);
}
int unlinkat(int dir, const char *path, int flags) {
    return refuses(dir, path) ? -1 : KERNEL(unlinkat, dir, path, flags);
}
int rmdir(const char *path) {
    return refuses(AT_FDCWD, path) ? -1 : KERNEL(unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}
int mkdir(const char *path, mode_t mode) {
    /* What is there is said to be there, on a read-only disk too. */
    int is_there = KERNEL(faccessat, AT_FDCWD, path, F_OK) == 0;
    return !is_there && refuses(AT_FDCWD, path) ? -1 : KERNEL(mkdirat, AT_FDCWD, path, mode);
}
