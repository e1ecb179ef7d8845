/* Ways to write to a place that others do not see, or see under another name. Mounts are made in a mount namespace of
 * the trick's own and end with it. */
#define _GNU_SOURCE
#include "evade.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

static void alone(void) {
    MUST(unshare(CLONE_NEWNS));
    MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

static void file_in(const char *folder, const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = create(path);
    put(file, text);
    close(file);
}

static void tell(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    MUST(file);
    put(file, text);
    close(file);
}

/* A tmpfs that nobody else sees, on the folder that is named first. */
int write_tmpfs(char **a) {
    alone();
    MUST(mount("tmpfs", a[0], "tmpfs", 0, NULL));
    file_in(a[0], "x", a[1]);
    held();
    return 0;
}

/* The same, and gone at once. */
int write_brief_tmpfs(char **a) {
    alone();
    MUST(mount("tmpfs", a[0], "tmpfs", 0, NULL));
    file_in(a[0], "x", a[1]);
    ready();
    return 0;
}

/* The same without any privilege: in a user namespace. */
int write_user_tmpfs(char **a) {
    char users[32], groups[32];
    snprintf(users, sizeof users, "0 %d 1", getuid());
    snprintf(groups, sizeof groups, "0 %d 1", getgid());
    MUST(unshare(CLONE_NEWUSER | CLONE_NEWNS));
    tell("/proc/self/setgroups", "deny");
    tell("/proc/self/uid_map", users);
    tell("/proc/self/gid_map", groups);
    MUST(mount("tmpfs", a[0], "tmpfs", 0, NULL));
    file_in(a[0], "x", a[1]);
    held();
    return 0;
}

/* The watched folder (first) seen from somewhere else (second). */
int write_bound(char **a) {
    alone();
    MUST(mount(a[0], a[1], NULL, MS_BIND, NULL));
    file_in(a[1], "x", a[2]);
    ready();
    return 0;
}

/* As a container writes: through an overlay whose layers lie in the folder that is named first. */
int write_overlay(char **a) {
    const char *parts[] = {"lower", "upper", "work", "merged"};
    char path[4][4096], options[3 * 4096 + 64];
    for (int i = 0; i < 4; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s", a[0], parts[i]);
        MUST(mkdir(path[i], 0755));
    }
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", path[0], path[1], path[2]);
    alone();
    MUST(mount("overlay", path[3], "overlay", 0, options));
    file_in(path[3], "x", a[1]);
    ready();
    return 0;
}

/* Straight to a block device, where a file system would have its blocks. The first argument is the device's backing
 * file, which exists. */
int write_device(char **a) {
    char path[64];
    int control = open("/dev/loop-control", O_RDWR);
    MUST(control);
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    MUST(number);
    snprintf(path, sizeof path, "/dev/loop%d", number);
    int device = open(path, O_RDWR), backing = open(a[0], O_RDWR);
    MUST(device);
    MUST(backing);
    MUST(ioctl(device, LOOP_SET_FD, backing));
    ssize_t written = write(device, a[1], strlen(a[1]));
    fsync(device);
    ready();
    char c;
    while (read(0, &c, 1) > 0) {}
    ioctl(device, LOOP_CLR_FD, 0);
    return written == (ssize_t)strlen(a[1]) ? 0 : 1;
}

/* Copies the program that is named second into a private tmpfs on the first, and becomes it. */
int run_tmpfs(char **a) {
    char path[4096], bytes[65536];
    alone();
    MUST(mount("tmpfs", a[0], "tmpfs", 0, NULL));
    snprintf(path, sizeof path, "%s/program", a[0]);
    int from = open(a[1], O_RDONLY), to = create(path);
    MUST(from);
    for (ssize_t n; (n = read(from, bytes, sizeof bytes)) > 0;) MUST(write(to, bytes, (size_t)n));
    close(to);
    MUST(execl(path, path, "sleep", NULL));
    return 0;
}
