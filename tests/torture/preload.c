/* Preloaded into runners and shims: kills the process that makes a certain call, before it, half way or after it.
 *
 * Which call that is stands in the plan, a file that all processes of a round have mapped: one process of them dies
 * for each plan, and its last act is to say so in the log. Of what a shim appends to `output`, a copy is kept, so that
 * what it had captured can be told after its death. Other programs that inherit this are left alone.
 *
 * The calls are made without the C library's own wrappers, which are what is replaced here.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DISARMED, ARMED };
enum { BEFORE, HALF, AFTER, NEVER };

/* The harness writes it: `killer.rs` has the same layout. A star stands for anything. */
struct plan {
    uint32_t armed;
    uint32_t when;
    uint64_t number;
    uint64_t count;
    char role[16];
    char call[16];
    char class[32];
};

static struct plan *plan;
/* "runner", "shim", or one of their children before it becomes another program; null: none of ours. */
static const char *role;
static char execution[40];
static char log_path[256];
static char records[256];
static pid_t (*real_fork)(void);
static int (*real_execvp)(const char *, char *const[]);
/* What the last request was about. */
static __thread char request[32];

static const char *base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Finds out whose process this is. In that of any other program `role` stays null, and nothing here does anything. */
__attribute__((constructor)) static void begin(void) {
    real_fork = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    real_execvp = (int (*)(const char *, char *const[]))dlsym(RTLD_NEXT, "execvp");
    const char *binary = getenv("TORTURE_BINARY"), *plan_path = getenv("TORTURE_PLAN");
    const char *log = getenv("TORTURE_LOG"), *dir = getenv("TORTURE_RECORDS");
    char exe[512], line[1024];
    ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (!binary || !plan_path || !log || !dir || length < 0) return;
    exe[length] = 0;
    if (strcmp(exe, binary)) return;
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    length = read(fd, line, sizeof line - 1);
    close(fd);
    if (length < 0) return;
    line[length] = 0;
    const char *second = line + strlen(line) + 1;
    int is_shim = second < line + length && !strcmp(second, "shim");
    if (is_shim) snprintf(execution, sizeof execution, "%s", base(second + strlen(second) + 1));
    snprintf(log_path, sizeof log_path, "%s", log);
    snprintf(records, sizeof records, "%s", dir);
    fd = syscall(SYS_openat, AT_FDCWD, plan_path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    plan = mmap(0, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (plan == MAP_FAILED) return;
    role = is_shim ? "shim" : "runner";
}

static void append(const char *path, const void *bytes, size_t length) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, bytes, length);
    close(fd);
}

static void say(const char *what, const char *call, const char *class, const char *when) {
    char line[256];
    int length = snprintf(line, sizeof line, "%s %s %s %s %s %s\n", what, role, call, class, when,
                          execution[0] ? execution : "-");
    append(log_path, line, length);
}

/* What SIGKILL from outside would be at this instant, but for a last line in the log. */
static void die(const char *call, const char *class, const char *when) {
    say("killed", call, class, when);
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_ppoll, 0, 0, 0, 0, 0);
}

static int fits(const char *wanted, const char *is) {
    return !strcmp(wanted, "*") || !strcmp(wanted, is);
}

/* When this call is to be the last one of this process; dies at once if that is before it. */
static int meet(const char *call, const char *class, int has_half) {
    if (!role || __atomic_load_n(&plan->armed, __ATOMIC_SEQ_CST) != ARMED) return NEVER;
    if (!fits(plan->role, role) || !fits(plan->call, call) || !fits(plan->class, class)) return NEVER;
    if (__atomic_add_fetch(&plan->count, 1, __ATOMIC_SEQ_CST) != plan->number) return NEVER;
    uint32_t armed = ARMED;
    if (!__atomic_compare_exchange_n(&plan->armed, &armed, DISARMED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return NEVER;
    int when = plan->when;
    if (when == BEFORE) die(call, class, "before");
    return when == HALF && !has_half ? AFTER : when;
}

static long leave(int when, const char *call, const char *class, long result) {
    if (when == AFTER) die(call, class, "after");
    return result;
}

/* What a path names: an execution's id stands for all of them. */
static const char *class_of_path(const char *path, char *class, size_t size) {
    const char *name = base(path);
    size_t length = strlen(name);
    int is_id = length >= 36 && name[8] == '-' && name[13] == '-' && name[18] == '-' && name[23] == '-';
    snprintf(class, size, "%s%s", is_id ? "ID" : name, is_id ? name + 36 : "");
    char *colon = strchr(class, ':');
    if (colon) *colon = 0;
    for (char *c = class; *c; c++) if (*c == ' ') *c = '_';
    return *class ? class : "-";
}

static const char *class_of_fd(int fd, char *class, size_t size) {
    char link[32], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return class_of_path(path, class, size);
}

#define CLASS_OF_PATH(path) char class_buffer[32]; const char *class = role ? class_of_path(path, class_buffer, 32) : "-"
#define CLASS_OF_FD(fd) char class_buffer[32]; const char *class = role ? class_of_fd(fd, class_buffer, 32) : "-"

/* A call that happens or does not. */
#define AROUND(call, ...) \
    int when = meet(call, class, 0); \
    return leave(when, call, class, syscall(__VA_ARGS__))

static void keep_copy(const char *class, const void *bytes, ssize_t length) {
    if (length <= 0 || !role || strcmp(role, "shim") || strcmp(class, "output")) return;
    int saved = errno;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.captured", records, execution);
    append(path, bytes, length);
    errno = saved;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    CLASS_OF_FD(fd);
    int when = meet("write", class, length > 1);
    if (when == HALF) {
        syscall(SYS_write, fd, bytes, length / 2);
        die("write", class, "half");
    }
    ssize_t written = syscall(SYS_write, fd, bytes, length);
    keep_copy(class, bytes, written);
    return leave(when, "write", class, written);
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    CLASS_OF_FD(fd);
    AROUND("writev", SYS_writev, fd, pieces, count);
}

int fsync(int fd) {
    CLASS_OF_FD(fd);
    AROUND("fsync", SYS_fsync, fd);
}

int fdatasync(int fd) {
    CLASS_OF_FD(fd);
    AROUND("fdatasync", SYS_fdatasync, fd);
}

int ftruncate64(int fd, off64_t length) {
    CLASS_OF_FD(fd);
    AROUND("ftruncate", SYS_ftruncate, fd, length);
}

int flock(int fd, int operation) {
    CLASS_OF_FD(fd);
    AROUND("flock", SYS_flock, fd, operation);
}

int rename(const char *from, const char *to) {
    CLASS_OF_PATH(to);
    AROUND("rename", SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}

int unlink(const char *path) {
    CLASS_OF_PATH(path);
    AROUND("unlink", SYS_unlinkat, AT_FDCWD, path, 0);
}

int unlinkat(int dir, const char *path, int flags) {
    CLASS_OF_PATH(path);
    AROUND("unlinkat", SYS_unlinkat, dir, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    CLASS_OF_PATH(path);
    AROUND("mkdir", SYS_mkdirat, AT_FDCWD, path, mode);
}

/* Only where a file may come to be or be emptied. */
static int open_at(const char *path, int flags, mode_t mode) {
    if (!role || !(flags & (O_CREAT | O_TRUNC))) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    CLASS_OF_PATH(path);
    AROUND("create", SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_at(path, flags, mode);
}

static const char *class_of_request(const void *bytes, size_t length) {
    static const char *const calls[] = {"heartbeat", "sync", "pending", "start", "output", "complete", "cancel-status"};
    char head[128];
    size_t size = length < sizeof head - 1 ? length : sizeof head - 1;
    memcpy(head, bytes, size);
    head[size] = 0;
    if (strncmp(head, "GET /", 5) && strncmp(head, "POST /", 6)) {
        char *dot = strchr(request, '.');
        if (*request && !dot) strcat(request, ".body");
        return *request ? request : "-";
    }
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        char part[24];
        snprintf(part, sizeof part, "/%s/ ", calls[i]);
        if (strstr(head, part)) snprintf(request, sizeof request, "%s", calls[i]);
    }
    return *request ? request : "-";
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    const char *class = role ? class_of_request(bytes, length) : "-";
    int when = meet("send", class, length > 1);
    if (when == HALF) {
        syscall(SYS_sendto, fd, bytes, length / 2, flags, 0, 0);
        die("send", class, "half");
    }
    return leave(when, "send", class, syscall(SYS_sendto, fd, bytes, length, flags, 0, 0));
}

ssize_t recv(int fd, void *bytes, size_t length, int flags) {
    const char *class = role && *request ? request : "-";
    AROUND("recv", SYS_recvfrom, fd, bytes, length, flags, 0, 0);
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    const char *class = "-";
    AROUND("connect", SYS_connect, fd, address, length);
}

pid_t fork(void) {
    int when = meet("fork", "-", 0);
    pid_t child = real_fork();
    if (child == 0 && role) role = strcmp(role, "shim") ? "shim's-birth" : "command's-birth";
    if (child == 0) when = NEVER;
    return leave(when, "fork", "-", child);
}

/* A runner also asks the project's Python, which is not what is to be killed here. */
static int is_birth_of_a_command(void) {
    return role && !strcmp(role, "command's-birth");
}

int execvp(const char *file, char *const words[]) {
    if (role && (is_birth_of_a_command() || !strcmp(file, "/proc/self/exe"))) {
        if (!is_birth_of_a_command() && words[1] && words[2])
            snprintf(execution, sizeof execution, "%s", base(words[2]));
        if (meet("exec", "-", 0) != NEVER) die("exec", "-", "before");
    }
    return real_execvp(file, words);
}

pid_t setsid(void) {
    int when = is_birth_of_a_command() ? meet("setsid", "-", 0) : NEVER;
    return leave(when, "setsid", "-", syscall(SYS_setsid));
}

int prctl(int option, ...) {
    va_list arguments;
    va_start(arguments, option);
    unsigned long a = va_arg(arguments, unsigned long), b = va_arg(arguments, unsigned long);
    unsigned long c = va_arg(arguments, unsigned long), d = va_arg(arguments, unsigned long);
    va_end(arguments);
    int counts = is_birth_of_a_command() || (role && !strcmp(role, "shim"));
    int when = counts ? meet("prctl", "-", 0) : NEVER;
    return leave(when, "prctl", "-", syscall(SYS_prctl, option, a, b, c, d));
}
