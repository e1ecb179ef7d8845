/* Ways to get bytes into a file, or a program to run, past somebody who watches files. One subcommand each.
 *
 * `evade NAME ARGUMENT…` does it, prints "ready" when the bytes are in place or the program is on its way, and, where
 * the trick needs to be held (a mapping, a descriptor, a mount), waits until its standard input ends. All of them work
 * only with harmless text, in folders of the test's own (tests/tests/evasion.rs), and make their mounts in a mount
 * namespace of their own. Exit code 0: done; 1: it could not be done, with the call and its error; 2: no such name.
 */
#define _GNU_SOURCE
#include "evade.h"

#include <stdio.h>
#include <string.h>

static const struct trick { const char *name; int (*run)(char **arguments); int arguments; } TRICKS[] = {
    {"write", write_plain, 2},          {"mmap", write_mmap, 2},          {"io_uring", write_io_uring, 2},
    {"tmpfile", write_tmpfile, 2},      {"exchange", rename_exchange, 2}, {"hold", write_held, 2},
    {"sendfile", write_sendfile, 2},    {"splice", write_splice, 2},      {"copy_range", write_copy_range, 2},
    {"ftruncate", cut_open, 2},         {"truncate", cut_by_path, 2},     {"inherit", write_inherited, 2},
    {"pass", write_passed, 2},          {"rename_open", write_renamed, 3}, {"chroot", write_chrooted, 2},
    {"unlinked", write_unlinked, 2},    {"killed", write_killed, 2},      {"keep_times", write_keep_times, 2},
    {"xattr", write_xattr, 2},          {"memory", write_memory, 1},      {"tmpfs", write_tmpfs, 2},
    {"brief_tmpfs", write_brief_tmpfs, 2}, {"bind", write_bound, 3},      {"overlay", write_overlay, 2},
    {"user_tmpfs", write_user_tmpfs, 2}, {"device", write_device, 2},     {"sparse", write_sparse, 2},
    {"memfd", run_memfd, 1},            {"fexecve", run_fexecve, 1},      {"deleted", run_deleted, 1},
    {"true", run_true, 0},             {"refused", run_refused, 1},      {"same_pid", run_same_pid, 2},
    {"argv", run_argv, 1},              {"renamed_self", run_renamed_self, 2},
    {"preload", run_preload, 2},        {"tmpfs_run", run_tmpfs, 2},      {"sleep", run_sleep, 0},
};

int main(int count, char **arguments) {
    if (count < 2) return 2;
    for (size_t i = 0; i < sizeof TRICKS / sizeof *TRICKS; i++)
        if (strcmp(arguments[1], TRICKS[i].name) == 0 && count - 2 >= TRICKS[i].arguments)
            return TRICKS[i].run(arguments + 2);
    fprintf(stderr, "evade: no trick `%s` with %d arguments\n", arguments[1], count - 2);
    return 2;
}
