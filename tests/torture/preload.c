/* Preloaded into runners and shims: kills the process that makes a certain call, before it, half way or after it.
 *
 * Which call that is stands in the plan, a file that all processes of a round have mapped: one process of them dies
 * for each plan, and its last act is to say so in the log. Of what a shim appends to `output`, a copy is kept, so that
 * what it had captured can be told after its death. What is done in the state directory is written down, and what is
 * synced, so that it can be told what a loss of power may take: see `power.rs`. Other programs that inherit this are
 * left alone.
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
/* "runner" (whatever its subcommand), "shim", or one of their children before it becomes another program; null: none of
 * ours. */
static const char *role;
static char execution[40];
static char log_path[256];
static char records[256];
static char state[256];
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
    const char *log = getenv("TORTURE_LOG"), *dir = getenv("TORTURE_RECORDS"), *path = getenv("TORTURE_STATE");
    char exe[512], line[1024];
    ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (!binary || !plan_path || !log || !dir || !path || length < 0) return;
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
    snprintf(state, sizeof state, "%s/", path);
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

/* A line about the disk. What replaces or removes something is written down before it is done: whoever dies between the
 * two has not done it, which is seen, while the other way round it would pass for something that is synced. */
static void note(const char *format, ...) {
    char path[512], line[2048];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/disk", records);
    int saved = errno;
    append(path, line, length);
    errno = saved;
}

/* The whole path, if it is in the state directory; else null. */
static const char *in_state(int dir, const char *path, char *buffer, size_t size) {
    if (!role) return 0;
    if (*path == '/' || dir == AT_FDCWD) {
        snprintf(buffer, size, "%s", path);
    } else {
        char link[32];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, size - 1);
        if (length < 0) return 0;
        snprintf(buffer + length, size - length, "/%s", path);
    }
    return strncmp(buffer, state, strlen(state)) ? 0 : buffer;
}

#define IN_STATE(dir, path) char path_buffer[512]; const char *known = in_state(dir, path, path_buffer, 512)

static unsigned long inode(const char *path) {
    struct stat is;
    return lstat(path, &is) ? 0 : is.st_ino;
}

static unsigned long inode_of_parent(const char *path) {
    char parent[512];
    snprintf(parent, sizeof parent, "%.*s", (int)(base(path) - path - 1), path);
    return inode(parent);
}

/* Another name for a file that is about to lose its own; a dash if there is none. */
static const char *keep(const char *path, char *kept, size_t size) {
    static unsigned count;
    int saved = errno;
    snprintf(kept, size, "%s/kept.%d.%u", records, getpid(), __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST));
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, kept, 0)) snprintf(kept, size, "-");
    errno = saved;
    return kept;
}

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

static int sync_fd(const char *call, long number, int fd) {
    CLASS_OF_FD(fd);
    int when = meet(call, class, 0);
    struct stat is;
    int has_size = role && !fstat(fd, &is);
    /* Some disks take their time, and then others are faster. */
    if (has_size && S_ISDIR(is.st_mode) && is.st_ino % 2 && !strcmp(role, "shim")) usleep(150000);
    long result = syscall(number, fd);
    if (has_size && !result) note("sync %lu %lu\n", is.st_ino, S_ISREG(is.st_mode) ? is.st_size : 0);
    return leave(when, call, class, result);
}

int fsync(int fd) {
    return sync_fd("fsync", SYS_fsync, fd);
}

int fdatasync(int fd) {
    return sync_fd("fdatasync", SYS_fdatasync, fd);
}

int ftruncate64(int fd, off64_t length) {
    CLASS_OF_FD(fd);
    int when = meet("ftruncate", class, 0);
    long result = syscall(SYS_ftruncate, fd, length);
    struct stat is;
    if (role && !result && !fstat(fd, &is)) note("cut %lu %lu\n", is.st_ino, length);
    return leave(when, "ftruncate", class, result);
}

int fcntl(int fd, int operation, ...) {
    va_list arguments;
    va_start(arguments, operation);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!role || operation != F_SETLK) return syscall(SYS_fcntl, fd, operation, argument);
    CLASS_OF_FD(fd);
    AROUND("setlk", SYS_fcntl, fd, operation, argument);
}

int flock(int fd, int operation) {
    CLASS_OF_FD(fd);
    AROUND("flock", SYS_flock, fd, operation);
}

/* A shim has said how its command ended: when that was is the time of a file. */
static void keep_time(const char *class) {
    if (!role || strcmp(role, "shim") || strcmp(class, "exit.json")) return;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.exit", records, execution);
    append(path, ".", 1);
}

int rename(const char *from, const char *to) {
    CLASS_OF_PATH(to);
    IN_STATE(AT_FDCWD, to);
    int when = meet("rename", class, 0);
    char kept[300];
    if (known) keep(to, kept, sizeof kept);
    if (known) note("rename %lu %s %s %s %lu\n", inode_of_parent(to), from, to, kept, inode(from));
    long result = syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    keep_time(class);
    return leave(when, "rename", class, result);
}

static int remove_at(const char *call, int dir, const char *path, int flags) {
    CLASS_OF_PATH(path);
    IN_STATE(dir, path);
    int when = meet(call, class, 0);
    char kept[300];
    if (known && flags & AT_REMOVEDIR) note("rmdir %lu %s\n", inode_of_parent(known), known);
    else if (known) note("unlink %lu %s %s\n", inode_of_parent(known), known, keep(known, kept, sizeof kept));
    return leave(when, call, class, syscall(SYS_unlinkat, dir, path, flags));
}

int unlink(const char *path) {
    return remove_at("unlink", AT_FDCWD, path, 0);
}

int unlinkat(int dir, const char *path, int flags) {
    return remove_at("unlinkat", dir, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    CLASS_OF_PATH(path);
    IN_STATE(AT_FDCWD, path);
    int when = meet("mkdir", class, 0);
    long result = syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (known && !result) note("mkdir %lu %lu %s\n", inode_of_parent(known), inode(known), known);
    return leave(when, "mkdir", class, result);
}

static int open_at(const char *path, int flags, mode_t mode) {
    if (!role || !(flags & (O_CREAT | O_TRUNC))) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    CLASS_OF_PATH(path);
    IN_STATE(AT_FDCWD, path);
    int when = meet("create", class, 0);
    unsigned long before = known ? inode(known) : 0;
    long fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (known && fd >= 0 && !before)
        note("create %lu %lu %s\n", inode_of_parent(known), inode(known), known);
    else if (known && fd >= 0 && flags & O_TRUNC)
        note("cut %lu 0\n", before);
    return leave(when, "create", class, fd);
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
        if (!is_birth_of_a_command()) {
            if (!strcmp(words[1], "shim")) snprintf(execution, sizeof execution, "%s", base(words[2]));
            else role = "runner's-birth";
        }
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
    int counts = is_birth_of_a_command() || (role && (!strcmp(role, "shim") || !strcmp(role, "runner")));
    int when = counts ? meet("prctl", "-", 0) : NEVER;
    return leave(when, "prctl", "-", syscall(SYS_prctl, option, a, b, c, d));
}
