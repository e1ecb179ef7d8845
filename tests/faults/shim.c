/* A disk, a clock and a network that fail on command: preloaded into `vidette` and `vidette-agent` by the fault campaign.
 *
 * It stands between the program and libc for regular files below VIDETTE_FAULTS_STATE, for UDP sends and for the wall
 * clock. What it does is said by a file of 64-bit numbers (VIDETTE_FAULTS_CONTROL) that is mapped and read at every call,
 * so that the harness (tests/src/faults/shim.rs) injects and lifts faults while the program runs. What it can't do: calls
 * that go past libc (the locks and the sinks' cursors are raw system calls). Renames and unlinks count as durable at
 * once. Companions of a database that are mapped (`-shm`) are not kept track of: a power cut loses them whole.
 *
 * For a power cut it writes the old content of everything that is overwritten or cut off to a log for each file
 * (VIDETTE_FAULTS_UNDO/INODE) and empties that log when the file is synced: what a log holds after SIGKILL is what no
 * sync had covered. A record: four 64-bit numbers (magic, offset, bytes, size of the file before), then the bytes.
 *
 * Other programs that inherit the variable pass through untouched, and the two programs drop it for their children.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order is that of `Slot` in tests/src/faults/shim.rs. */
enum slot {
    MAGIC,
    SPACE,            /* bytes by which files may still grow; -1: without end */
    EIO_AT,           /* the n-th write from now fails with EIO */
    TORN_AT,          /* the n-th write from now is done by half, and the next one fails with EIO */
    KILL_AT_WRITE,    /* SIGKILL before the n-th write */
    SYNC_EIO_AT,      /* the n-th sync fails with EIO */
    KILL_BEFORE_SYNC, /* SIGKILL before the n-th sync */
    KILL_AFTER_SYNC,  /* SIGKILL after the n-th sync */
    KILL_AFTER_SEND,  /* SIGKILL after the n-th UDP send */
    READ_ONLY,        /* 1: every change fails with EROFS */
    CLOCK_NS,         /* added to the wall clock */
    CLOCK_BACK_NS,    /* the wall clock goes back by this once, when CLOCK_EACH_NS have passed, again and again */
    CLOCK_EACH_NS,
    TWICE_PERCENT,    /* datagrams that are sent two times */
    LATE_PERCENT,     /* datagrams that are sent after the next one */
    WRITES,           /* counted: writes seen */
    SYNCS,            /* counted: syncs seen */
    SENDS,            /* counted: UDP sends seen */
    FIRED,            /* counted: times that something was injected */
    SLOTS
};

#define CONTROL_MAGIC 0x5664466175 /* "VdFau" */
#define RECORD_MAGIC 0x5664556e64  /* "VdUnd" */
#define LOGS_MAX 64
#define LATE_BYTES_MAX 65536

static _Atomic int64_t *control;
static char state[PATH_MAX];
static size_t state_bytes;
static char undo[PATH_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    ino_t inode;
    int log;
} logs[LOGS_MAX];
static int logs_used;

__attribute__((constructor)) static void begin(void) {
    char name[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", name, sizeof name - 1);
    if (bytes < 0) return;
    name[bytes] = 0;
    const char *base = strrchr(name, '/');
    base = base ? base + 1 : name;
    if (strcmp(base, "vidette") != 0 && strcmp(base, "vidette-agent") != 0) return;
    const char *file = getenv("VIDETTE_FAULTS_CONTROL");
    const char *folder = getenv("VIDETTE_FAULTS_STATE");
    const char *undo_folder = getenv("VIDETTE_FAULTS_UNDO");
    unsetenv("LD_PRELOAD");
    if (!file || !folder || !undo_folder) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *map = mmap(NULL, SLOTS * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED) return;
    snprintf(state, sizeof state, "%s/", folder);
    state_bytes = strlen(state);
    snprintf(undo, sizeof undo, "%s", undo_folder);
    if (((int64_t *)map)[MAGIC] == CONTROL_MAGIC) control = map;
}

static int64_t get(enum slot slot) { return control ? atomic_load(&control[slot]) : 0; }

static void count(enum slot slot) { atomic_fetch_add(&control[slot], 1); }

/* Counts down; true at the one call that reaches zero. */
static int due(enum slot slot) {
    int64_t left = get(slot);
    while (left > 0) {
        if (!atomic_compare_exchange_weak(&control[slot], &left, left - 1)) continue;
        if (left != 1) return 0;
        count(FIRED);
        return 1;
    }
    return 0;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static int is_below_state(const char *path) { return control && strncmp(path, state, state_bytes) == 0; }

/* Whether a descriptor is a regular file of the state folder. 2: one that is mapped, of which no log is kept. */
static int is_state(int fd, struct stat *about) {
    if (!control || fstat(fd, about) != 0 || !S_ISREG(about->st_mode)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    if (bytes < 0) return 0;
    path[bytes] = 0;
    if (!is_below_state(path)) return 0;
    return bytes > 4 && strcmp(path + bytes - 4, "-shm") == 0 ? 2 : 1;
}

static int log_of(ino_t inode, int make) {
    for (int i = 0; i < logs_used; i++)
        if (logs[i].inode == inode) return logs[i].log;
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%llu", undo, (unsigned long long)inode);
    int flags = O_WRONLY | O_APPEND | O_CLOEXEC | (make ? O_CREAT : 0);
    int log = (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
    if (log < 0) return -1;
    if (logs_used == LOGS_MAX) { /* forget one: it is found again by its name */
        syscall(SYS_close, logs[0].log);
        logs[0] = logs[--logs_used];
    }
    logs[logs_used].inode = inode;
    logs[logs_used++].log = log;
    return log;
}

/* Notes what lies at offset.. before it is changed. */
static void note(int fd, const struct stat *about, off_t offset, size_t bytes) {
    size_t old = 0;
    if (offset < about->st_size) {
        off_t rest = about->st_size - offset;
        old = (off_t)bytes < rest ? bytes : (size_t)rest;
    }
    int log = log_of(about->st_ino, 1);
    if (log < 0) return;
    uint64_t head[4] = {RECORD_MAGIC, (uint64_t)offset, old, (uint64_t)about->st_size};
    char *record = malloc(sizeof head + old);
    if (!record) return;
    memcpy(record, head, sizeof head);
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int reader = old ? (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0) : -1;
    size_t read = 0;
    while (reader >= 0 && read < old) {
        ssize_t got = syscall(SYS_pread64, reader, record + sizeof head + read, old - read, offset + (off_t)read);
        if (got <= 0) break;
        read += (size_t)got;
    }
    if (reader >= 0) syscall(SYS_close, reader);
    if (read == old) syscall(SYS_write, log, record, sizeof head + old); /* one call: whole or not at all */
    free(record);
}

static void forget(ino_t inode) {
    int log = log_of(inode, 0);
    if (log >= 0) syscall(SYS_ftruncate, log, 0);
}

static int fails(int error) {
    errno = error;
    return -1;
}

/* How many bytes of a write are done; -1 with errno when it fails. */
static ssize_t allowed(const struct stat *about, off_t offset, size_t bytes) {
    count(WRITES);
    if (get(READ_ONLY)) {
        count(FIRED);
        return fails(EROFS);
    }
    if (due(KILL_AT_WRITE)) die();
    if (due(EIO_AT)) return fails(EIO);
    if (due(TORN_AT)) {
        atomic_store(&control[EIO_AT], 1);
        if (bytes < 2) return fails(EIO);
        bytes /= 2;
    }
    int64_t space = get(SPACE);
    int64_t more = (int64_t)offset + (int64_t)bytes - (int64_t)about->st_size;
    if (space < 0 || more <= 0) return (ssize_t)bytes;
    if (space < more) {
        count(FIRED);
        int64_t fits = (int64_t)bytes - (more - space);
        if (fits <= 0) return fails(ENOSPC);
        more = space;
        bytes = (size_t)fits;
    }
    atomic_fetch_sub(&control[SPACE], more);
    return (ssize_t)bytes;
}

static ssize_t write_at(int fd, const void *bytes, size_t count_, off_t offset, int positioned) {
    struct stat about;
    int kind = is_state(fd, &about);
    if (!kind)
        return positioned ? syscall(SYS_pwrite64, fd, bytes, count_, offset) : syscall(SYS_write, fd, bytes, count_);
    pthread_mutex_lock(&lock);
    fstat(fd, &about);
    if (!positioned) {
        int flags = fcntl(fd, F_GETFL);
        offset = flags & O_APPEND ? about.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t done = allowed(&about, offset, count_);
    if (done >= 0) {
        if (kind == 1) note(fd, &about, offset, (size_t)done);
        done = positioned ? syscall(SYS_pwrite64, fd, bytes, (size_t)done, offset)
                          : syscall(SYS_write, fd, bytes, (size_t)done);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

ssize_t write(int fd, const void *bytes, size_t count_) { return write_at(fd, bytes, count_, 0, 0); }

ssize_t pwrite(int fd, const void *bytes, size_t count_, off_t offset) { return write_at(fd, bytes, count_, offset, 1); }

ssize_t pwrite64(int fd, const void *bytes, size_t count_, off_t offset) {
    return write_at(fd, bytes, count_, offset, 1);
}

ssize_t writev(int fd, const struct iovec *parts, int parts_used) {
    struct stat about;
    if (!is_state(fd, &about)) return syscall(SYS_writev, fd, parts, parts_used);
    for (int i = 0; i < parts_used; i++) /* fewer bytes than asked for are in order (write(2)) */
        if (parts[i].iov_len) return write_at(fd, parts[i].iov_base, parts[i].iov_len, 0, 0);
    return 0;
}

int ftruncate(int fd, off_t size) {
    struct stat about;
    int kind = is_state(fd, &about);
    if (!kind) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    fstat(fd, &about);
    int done = (int)allowed(&about, 0, 0);
    if (done >= 0) {
        if (kind == 1 && size < about.st_size) note(fd, &about, size, (size_t)(about.st_size - size));
        else if (kind == 1) note(fd, &about, about.st_size, 0);
        done = (int)syscall(SYS_ftruncate, fd, size);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

static int sync_file(int fd, long call) {
    struct stat about;
    int kind = is_state(fd, &about);
    if (!kind) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    count(SYNCS);
    if (due(KILL_BEFORE_SYNC)) die();
    int done = get(READ_ONLY) ? fails(EROFS) : due(SYNC_EIO_AT) ? fails(EIO) : (int)syscall(call, fd);
    int error = errno;
    if (done == 0) forget(about.st_ino);
    if (done == 0 && due(KILL_AFTER_SYNC)) die();
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

static int open_file(int at, const char *path, int flags, mode_t mode) {
    if (!is_below_state(path)) return (int)syscall(SYS_openat, at, path, flags, mode);
    if (get(READ_ONLY) && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && !(flags & O_DIRECTORY)) {
        count(FIRED);
        return fails(EROFS);
    }
    int fd = (int)syscall(SYS_openat, at, path, flags & ~O_TRUNC, mode);
    struct stat about;
    if (fd >= 0 && flags & O_TRUNC && fstat(fd, &about) == 0 && about.st_size > 0 && ftruncate(fd, 0) != 0) {
        int error = errno;
        syscall(SYS_close, fd);
        return fails(error);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? (mode_t)va_arg(rest, int) : 0;
}

#define OPEN(name, parameters, at, path)                                                                               \
    int name parameters {                                                                                              \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return open_file(at, path, flags, mode);                                                                       \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int at, const char *path, int flags, ...), at, path)
OPEN(openat64, (int at, const char *path, int flags, ...), at, path)

/* The number of a file that is gone may be given again: its log must not outlive it. */
static void gone(const char *path) {
    struct stat about = {0};
    if (lstat(path, &about) != 0 || !S_ISREG(about.st_mode) || about.st_nlink > 1) return;
    ino_t inode = about.st_ino;
    pthread_mutex_lock(&lock);
    forget(inode);
    pthread_mutex_unlock(&lock);
}

int unlink(const char *path) {
    if (is_below_state(path)) {
        if (get(READ_ONLY)) return fails(EROFS);
        gone(path);
    }
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rename(const char *from, const char *to) {
    if (is_below_state(to)) {
        if (get(READ_ONLY)) return fails(EROFS);
        gone(to);
    }
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* The network. One datagram may be held back until the next one is gone. */
static pthread_mutex_t late_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int fd, bytes, name_bytes, control_bytes;
    char data[LATE_BYTES_MAX], name[128], control[256];
} late = {.fd = -1};
static uint64_t dice = 88172645463325252u;

static int chance(enum slot slot) {
    int64_t percent = get(slot);
    if (percent <= 0) return 0;
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17; /* xorshift: a race only makes it more random */
    return (int64_t)(dice % 100) < percent;
}

static int is_udp(int fd) {
    int domain = 0, type = 0;
    socklen_t bytes = sizeof domain;
    if (!control || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0) return 0;
    bytes = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) != 0) return 0;
    return (domain == AF_INET || domain == AF_INET6) && type == SOCK_DGRAM;
}

/* Keeps a copy; true when that was possible. */
static int hold(int fd, const struct msghdr *message) {
    size_t bytes = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) bytes += message->msg_iov[i].iov_len;
    if (late.fd >= 0 || bytes > LATE_BYTES_MAX || message->msg_namelen > sizeof late.name ||
        message->msg_controllen > sizeof late.control)
        return 0;
    late.bytes = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        memcpy(late.data + late.bytes, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
        late.bytes += (int)message->msg_iov[i].iov_len;
    }
    if (message->msg_namelen) memcpy(late.name, message->msg_name, message->msg_namelen);
    if (message->msg_controllen) memcpy(late.control, message->msg_control, message->msg_controllen);
    late.name_bytes = (int)message->msg_namelen;
    late.control_bytes = (int)message->msg_controllen;
    late.fd = fd;
    count(FIRED);
    return 1;
}

static void release(int fd) {
    if (late.fd == fd) {
        struct iovec part = {late.data, (size_t)late.bytes};
        struct msghdr message = {.msg_name = late.name_bytes ? late.name : NULL,
                                 .msg_namelen = (socklen_t)late.name_bytes,
                                 .msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = late.control_bytes ? late.control : NULL,
                                 .msg_controllen = (size_t)late.control_bytes};
        syscall(SYS_sendmsg, fd, &message, MSG_DONTWAIT);
    }
    late.fd = -1; /* one of a socket that is closed is lost */
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (!is_udp(fd)) return syscall(SYS_sendmsg, fd, message, flags);
    count(SENDS);
    pthread_mutex_lock(&late_lock);
    ssize_t done;
    if (chance(LATE_PERCENT) && hold(fd, message)) {
        done = late.bytes;
    } else {
        done = syscall(SYS_sendmsg, fd, message, flags);
        int error = errno;
        if (done >= 0 && chance(TWICE_PERCENT)) {
            count(FIRED);
            syscall(SYS_sendmsg, fd, message, flags | MSG_DONTWAIT);
        }
        release(fd);
        errno = error;
    }
    int error = errno;
    pthread_mutex_unlock(&late_lock);
    if (done >= 0 && due(KILL_AFTER_SEND)) die();
    errno = error;
    return done;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int messages_used, int flags) {
    if (!is_udp(fd)) return (int)syscall(SYS_sendmmsg, fd, messages, messages_used, flags);
    unsigned int done = 0;
    while (done < messages_used) {
        ssize_t bytes = sendmsg(fd, &messages[done].msg_hdr, flags);
        if (bytes < 0) return done ? (int)done : -1;
        messages[done++].msg_len = (unsigned int)bytes;
    }
    return (int)done;
}

/* The wall clock. */
static int64_t shift(void) {
    int64_t each = get(CLOCK_EACH_NS);
    if (each <= 0) return get(CLOCK_NS);
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    int64_t passed = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    return get(CLOCK_NS) - passed / each % 2 * get(CLOCK_BACK_NS);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t moved = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + shift();
        now->tv_sec = moved / 1000000000;
        now->tv_nsec = moved % 1000000000;
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec fine;
    int done = clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return done;
}

time_t time(time_t *out) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (out) *out = fine.tv_sec;
    return fine.tv_sec;
}
