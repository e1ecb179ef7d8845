/* Ways to run a program under another name, from another place, or as somebody else. */
#define _GNU_SOURCE
#include "evade.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Says that it runs and stays until its standard input ends: most tricks run this one. */
int run_sleep(char **a) {
    (void)a;
    held();
    return 0;
}

/* Ends at once. */
int run_true(char **a) {
    (void)a;
    return 0;
}

/* Copies the program that is named first into memory, and becomes it; what follows are its arguments. */
int run_memfd(char **a) {
    char bytes[65536];
    int from = open(a[0], O_RDONLY), to = memfd_create("evade", MFD_CLOEXEC);
    MUST(from);
    MUST(to);
    for (ssize_t n; (n = read(from, bytes, sizeof bytes)) > 0;) MUST(write(to, bytes, (size_t)n));
    char *environment[] = {NULL};
    MUST(fexecve(to, a, environment));
    return 0;
}

/* By descriptor. */
int run_fexecve(char **a) {
    int file = open(a[0], O_RDONLY | O_CLOEXEC);
    MUST(file);
    char *arguments[] = {"nothing", "true", NULL}, *environment[] = {NULL};
    MUST(fexecve(file, arguments, environment));
    return 0;
}

/* Unlinked while it starts: the descriptor is all that is left. */
int run_deleted(char **a) {
    int file = open(a[0], O_RDONLY | O_CLOEXEC);
    MUST(file);
    MUST(unlink(a[0]));
    char *arguments[] = {a[0], "true", NULL}, *environment[] = {NULL};
    MUST(fexecve(file, arguments, environment));
    return 0;
}

/* What the kernel must refuse to run: a FIFO, a device. */
int run_refused(char **a) {
    execv(a[0], a);
    MUST(errno == EACCES ? 0 : -1);
    ready();
    return 0;
}

static pid_t child_with_pid(pid_t pid) {
    struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (unsigned long)&pid, .set_tid_size = 1};
    return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

/* Two programs, one after the other, with the same process id. A kernel that gives ids in turn needs longer than this
 * for a whole turn; within one clock tick (10 ms) `/proc` could not tell the two apart either. */
int run_same_pid(char **a) {
    pid_t first = fork();
    MUST(first);
    if (first == 0) { execl(a[0], a[0], NULL); exit(1); }
    MUST(waitpid(first, NULL, 0));
    usleep(50000);
    pid_t second = -1;
    for (int tries = 0; second < 0 && tries < 100; tries++) {
        second = child_with_pid(first);
        if (second == 0) { execl(a[1], a[1], NULL); exit(1); }
        if (second < 0) usleep(10000);
    }
    MUST(second);
    MUST(waitpid(second, NULL, 0));
    ready();
    return 0;
}

/* Writes over its own arguments and takes another name, then says so. */
int run_argv(char **a) {
    memset(a[0], 'x', strlen(a[0]));
    MUST(prctl(PR_SET_NAME, "kworker/0:1"));
    held();
    return 0;
}

/* Takes a name that breaks naive readers of /proc/PID/stat, then writes. */
int run_renamed_self(char **a) {
    MUST(prctl(PR_SET_NAME, "x) R 1 (\nroot"));
    return write_plain(a);
}

/* A library (first) that the program (second) is made to load. */
int run_preload(char **a) {
    MUST(setenv("LD_PRELOAD", a[0], 1));
    MUST(execl(a[1], a[1], "true", NULL));
    return 0;
}
