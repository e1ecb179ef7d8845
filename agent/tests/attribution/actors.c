// What the attribution tests do to the sensors: see the names of the modes in `main`.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char content[1 << 16];
static long content_bytes;

static void load(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    content_bytes = read(fd, content, sizeof content);
    close(fd);
}

static int put(const char *path, int mode, const char *bytes, long count, const char *tail) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0 || write(fd, bytes, count) != count || write(fd, tail, strlen(tail)) < 0) return 1;
    return close(fd);
}

static void wait_for(int running_max, int *running) {
    while (*running > running_max && wait(0) > 0) --*running;
}

// Children that write one file each and end without an exec; every fourth by a grandchild whose parent is gone.
static void fork_writers(int count) {
    int running = 0;
    for (int i = 0; i < count; i++) {
        wait_for(15, &running);
        pid_t child = fork();
        if (child == 0) {
            char name[32];
            if (i % 4 == 0 && fork() > 0) _exit(0);
            sprintf(name, "w%d", i);
            _exit(put(name, 0644, name, strlen(name), ""));
        }
        running += child > 0;
    }
    wait_for(0, &running);
}

// Each writes a program, makes it run and removes it.
static void droppers(int count) {
    int running = 0;
    load("tiny");
    for (int i = 0; i < count; i++) {
        wait_for(3, &running);
        pid_t child = fork();
        if (child == 0) {
            char name[32];
            sprintf(name, "d%d", i);
            put(name, 0644, content, content_bytes, name);
            chmod(name, 0755);
            pid_t dropped = fork();
            if (dropped == 0) {
                execl(name, name, (char *)0);
                _exit(1);
            }
            waitpid(dropped, 0, 0);
            unlink(name);
            _exit(0);
        }
        running += child > 0;
    }
    wait_for(0, &running);
}

// One pid, one process after another; every second runs another program first. What could not get the pid is
// tried again.
static void one_pid(int count) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, 0, 0);
    for (int i = 0; i < count;) {
        struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (__u64)(unsigned long)&pid, .set_tid_size = 1};
        pid_t child = syscall(SYS_clone3, &args, sizeof args);
        if (child < 0) {
            usleep(100);
            continue;
        }
        if (child == 0) {
            char name[32];
            sprintf(name, "r%d", i);
            if (i % 2) execl("other", "other", "write", name, (char *)0);
            _exit(put(name, 0644, name, strlen(name), ""));
        }
        waitpid(child, 0, 0);
        i++;
    }
}

// Programs that run from memory, and write one file each.
static void from_memory(int count) {
    load("other");
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            char name[32];
            char *argv[] = {"m", "write", name, 0}, *environment[] = {0};
            sprintf(name, "m%d", i);
            int fd = memfd_create("m", MFD_CLOEXEC);
            if (write(fd, content, content_bytes) != content_bytes) _exit(1);
            fexecve(fd, argv, environment);
            _exit(1);
        }
        waitpid(child, 0, 0);
    }
}

// Even ones become nobody, close a file and run a set-user-id program at once; odd ones close it as root and become
// somebody else at once.
static void change_users(int count) {
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            char name[32];
            sprintf(name, "u%d", i);
            int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644), null = open("/dev/null", O_WRONLY);
            if (i % 2 == 0 && (setgid(65534) || setuid(65534))) _exit(1);
            if (write(fd, name, strlen(name)) < 0) _exit(1);
            close(fd);
            dup2(null, 1);
            if (i % 2 == 0) execl("/bin/su", "su", "--version", (char *)0);
            _exit(setuid(1));
        }
        waitpid(child, 0, 0);
    }
}

// Far more events than anybody can read, for half a minute at most.
static void flood(void) {
    char name[32];
    alarm(30);
    for (unsigned i = 0; i < 500; i++) {
        sprintf(name, "f%d-%u", getpid(), i);
        put(name, 0644, "x", 1, "");
    }
    for (unsigned i = 0;; i++) {
        sprintf(name, "f%d-%u", getpid(), i % 500);
        close(open(name, O_WRONLY | O_CLOEXEC));
    }
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 0;
    if (!strcmp(mode, "fork")) fork_writers(count);
    else if (!strcmp(mode, "drop")) droppers(count);
    else if (!strcmp(mode, "one-pid")) one_pid(count);
    else if (!strcmp(mode, "memory")) from_memory(count);
    else if (!strcmp(mode, "users")) change_users(count);
    else if (!strcmp(mode, "flood")) flood();
    else if (!strcmp(mode, "write")) return put(argv[2], 0644, argv[2], strlen(argv[2]), "");
    else return 2;
    return 0;
}
