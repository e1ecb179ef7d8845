/* Ways to get text into a regular file: other calls than write(2), other names, other owners of the descriptor. */
#define _GNU_SOURCE
#include "evade.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>

int create(const char *path) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    MUST(file);
    return file;
}

void put(int file, const char *text) { MUST(write(file, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1); }

/* The ordinary way, to compare with. */
int write_plain(char **a) {
    int file = create(a[0]);
    put(file, a[1]);
    close(file);
    ready();
    return 0;
}

/* The descriptor is closed first; the shared mapping writes after that, for as long as it lives. */
int write_mmap(char **a) {
    size_t size = strlen(a[1]);
    int file = create(a[0]);
    MUST(ftruncate(file, (off_t)size));
    char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    MUST(map == MAP_FAILED ? -1 : 0);
    close(file);
    memcpy(map, a[1], size);
    held();
    munmap(map, size);
    return 0;
}

/* Written by the kernel's ring: no write(2) in this process. Opened and closed by it as well. */
static int ring;
static struct io_uring_params params;
static char *submissions, *completions;
static struct io_uring_sqe *entries;

static int ring_do(struct io_uring_sqe entry) {
    unsigned *tail = (unsigned *)(submissions + params.sq_off.tail);
    unsigned mask = *(unsigned *)(submissions + params.sq_off.ring_mask);
    entries[*tail & mask] = entry;
    ((unsigned *)(submissions + params.sq_off.array))[*tail & mask] = *tail & mask;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    MUST(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
    unsigned *head = (unsigned *)(completions + params.cq_off.head);
    unsigned cq_mask = *(unsigned *)(completions + params.cq_off.ring_mask);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(completions + params.cq_off.cqes) + (*head & cq_mask);
    int result = done->res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    if (result < 0) { errno = -result; MUST(-1); }
    return result;
}

int write_io_uring(char **a) {
    ring = (int)syscall(SYS_io_uring_setup, 4, &params);
    MUST(ring);
    size_t sq = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int both = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    submissions = mmap(NULL, sq, both, flags, ring, IORING_OFF_SQ_RING);
    completions = mmap(NULL, cq, both, flags, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, params.sq_entries * sizeof *entries, both, flags, ring, IORING_OFF_SQES);
    MUST(submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED ? -1 : 0);
    int file = ring_do((struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)a[0],
                                             .open_flags = O_WRONLY | O_CREAT, .len = 0755});
    ring_do((struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = file, .addr = (unsigned long)a[1],
                                  .len = (unsigned)strlen(a[1])});
    ring_do((struct io_uring_sqe){.opcode = IORING_OP_CLOSE, .fd = file});
    ready();
    return 0;
}

/* A file without a name gets one while it is still open. The first argument is the path it gets. */
int write_tmpfile(char **a) {
    char folder[4096], self[64];
    snprintf(folder, sizeof folder, "%s", a[0]);
    *strrchr(folder, '/') = 0;
    int file = open(folder, O_TMPFILE | O_RDWR, 0755);
    MUST(file);
    put(file, a[1]);
    snprintf(self, sizeof self, "/proc/self/fd/%d", file);
    MUST(linkat(AT_FDCWD, self, AT_FDCWD, a[0], AT_SYMLINK_FOLLOW));
    held();
    return 0;
}

/* Two names change places: what was written elsewhere is here now, and no name is new. Both arguments are paths. */
int rename_exchange(char **a) {
    MUST(renameat2(AT_FDCWD, a[0], AT_FDCWD, a[1], RENAME_EXCHANGE));
    ready();
    return 0;
}

/* Written, and not closed. */
int write_held(char **a) {
    put(create(a[0]), a[1]);
    held();
    return 0;
}

/* Both arguments are paths: the second is copied into the first by the kernel. */
static int copy(char **a, ssize_t (*copier)(int from, int to, size_t size)) {
    struct stat stat;
    int to = create(a[0]), from = open(a[1], O_RDONLY);
    MUST(from);
    MUST(fstat(from, &stat));
    MUST(copier(from, to, (size_t)stat.st_size) == stat.st_size ? 0 : -1);
    close(to);
    ready();
    return 0;
}
static ssize_t by_sendfile(int from, int to, size_t size) { return sendfile(to, from, NULL, size); }
static ssize_t by_range(int from, int to, size_t size) { return copy_file_range(from, NULL, to, NULL, size, 0); }
static ssize_t by_splice(int from, int to, size_t size) {
    int ends[2];
    MUST(pipe(ends));
    ssize_t taken = splice(from, NULL, ends[1], NULL, size, 0);
    return splice(ends[0], NULL, to, NULL, (size_t)taken, 0);
}
int write_sendfile(char **a) { return copy(a, by_sendfile); }
int write_splice(char **a) { return copy(a, by_splice); }
int write_copy_range(char **a) { return copy(a, by_range); }

/* Nothing is written: what stood behind the given size is cut off, by descriptor and by path. */
int cut_open(char **a) {
    int file = open(a[0], O_WRONLY);
    MUST(file);
    MUST(ftruncate(file, atol(a[1])));
    close(file);
    ready();
    return 0;
}
int cut_by_path(char **a) {
    MUST(truncate(a[0], atol(a[1])));
    ready();
    return 0;
}

/* A child writes through the descriptor that it was born with, after its parent has closed it. */
int write_inherited(char **a) {
    int file = create(a[0]);
    pid_t child = fork();
    MUST(child);
    if (child == 0) {
        usleep(50000);
        put(file, a[1]);
        exit(0);
    }
    close(file);
    MUST(waitpid(child, NULL, 0));
    ready();
    return 0;
}

/* The descriptor is sent to another process, which had nothing to do with the file. */
int write_passed(char **a) {
    int ends[2];
    union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    char byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    pid_t child = fork();
    MUST(child);
    if (child == 0) {
        int file;
        MUST(recvmsg(ends[1], &message, 0));
        memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof file);
        put(file, a[1]);
        exit(0);
    }
    int file = create(a[0]);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof file)};
    memcpy(CMSG_DATA(header), &file, sizeof file);
    MUST(sendmsg(ends[0], &message, 0));
    close(file);
    MUST(waitpid(child, NULL, 0));
    ready();
    return 0;
}

/* Opened as one name, written as another. The second argument is that name, the third the text. */
int write_renamed(char **a) {
    int file = create(a[0]);
    MUST(rename(a[0], a[1]));
    put(file, a[2]);
    close(file);
    ready();
    return 0;
}

/* The first argument is the new root; the file is /x in it. */
int write_chrooted(char **a) {
    MUST(chroot(a[0]));
    MUST(chdir("/"));
    int file = create("/x");
    put(file, a[1]);
    close(file);
    ready();
    return 0;
}

/* Without a name before the first byte, run by descriptor. */
int write_unlinked(char **a) {
    char self[64];
    int file = create(a[0]);
    MUST(unlink(a[0]));
    put(file, a[1]);
    snprintf(self, sizeof self, "/proc/self/fd/%d", file);
    int again = open(self, O_RDONLY);
    MUST(again);
    close(file);
    ready();
    char *arguments[] = {"unlinked", NULL}, *environment[] = {NULL};
    MUST(fexecve(again, arguments, environment));
    return 0;
}

/* Whoever writes is killed before it closes. */
int write_killed(char **a) {
    pid_t child = fork();
    MUST(child);
    if (child == 0) {
        put(create(a[0]), a[1]);
        raise(SIGKILL);
    }
    MUST(waitpid(child, NULL, 0));
    ready();
    return 0;
}

/* In place, same size, and the old times put back. */
int write_keep_times(char **a) {
    struct stat stat;
    int file = open(a[0], O_RDWR);
    MUST(file);
    MUST(fstat(file, &stat));
    put(file, a[1]);
    MUST(futimens(file, (struct timespec[]){stat.st_atim, stat.st_mtim}));
    close(file);
    ready();
    return 0;
}

/* Not in the content, but beside it. */
int write_xattr(char **a) {
    close(create(a[0]));
    MUST(setxattr(a[0], "user.evade", a[1], strlen(a[1]), 0));
    ready();
    return 0;
}

/* Not in a file at all: into the memory of another process. The argument is the text. */
int write_memory(char **a) {
    static char room[4096];
    pid_t child = fork();
    MUST(child);
    if (child == 0) { pause(); exit(0); }
    struct iovec from = {a[0], strlen(a[0])}, to = {room, strlen(a[0])};
    MUST(process_vm_writev(child, &from, 1, &to, 1, 0));
    ready();
    kill(child, SIGKILL);
    MUST(waitpid(child, NULL, 0));
    return 0;
}

/* In the middle of 200 MiB that have their place on the disk: of a hole nothing is read, and what is beside it is. */
int write_sparse(char **a) {
    int file = create(a[0]);
    MUST(fallocate(file, 0, 0, 200l << 20));
    MUST(pwrite(file, a[1], strlen(a[1]), 100l << 20));
    close(file);
    ready();
    return 0;
}
