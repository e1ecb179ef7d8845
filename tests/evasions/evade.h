/* What the tricks share: how they fail, how they say that they are in place, how they wait; and their list.
 * Each trick gets the arguments after its name; the first is a path unless its comment says otherwise, the next the text.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUST(call) \
    do { if ((long)(call) < 0) { fprintf(stderr, "evade: %s: %s\n", #call, strerror(errno)); exit(1); } } while (0)

/* The bytes are in place. */
static inline void ready(void) { puts("ready"); fflush(stdout); }
/* Holds whatever is held until the test lets go. */
static inline void held(void) { char c; ready(); while (read(0, &c, 1) > 0) {} }

int create(const char *path);                       /* a new file, open for reading and writing */
void put(int file, const char *text);               /* all of the text */

int write_plain(char **a), write_mmap(char **a), write_io_uring(char **a), write_tmpfile(char **a), rename_exchange(char **a),
    write_held(char **a), write_sendfile(char **a), write_splice(char **a), write_copy_range(char **a), cut_open(char **a),
    cut_by_path(char **a), write_inherited(char **a), write_passed(char **a), write_renamed(char **a), write_chrooted(char **a),
    write_unlinked(char **a), write_killed(char **a), write_keep_times(char **a), write_xattr(char **a), write_memory(char **a),
    write_tmpfs(char **a), write_brief_tmpfs(char **a), write_bound(char **a), write_overlay(char **a), write_user_tmpfs(char **a),
    write_device(char **a), write_sparse(char **a);
int run_memfd(char **a), run_fexecve(char **a), run_deleted(char **a), run_true(char **a), run_refused(char **a),
    run_same_pid(char **a), run_argv(char **a), run_renamed_self(char **a), run_preload(char **a),
    run_tmpfs(char **a), run_sleep(char **a);
