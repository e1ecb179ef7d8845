// Holds a text in its memory and nowhere else: the text comes as hex of bytes XOR 0x5a, and is decoded where it is held.
// Prints the address, then waits until its standard input is closed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t page = 4096;

static void decode(const char *hex, char *to) {
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2) *to++ = (char)(byte ^ 0x5a);
}

static char *map(size_t length, int protection, int flags, int file) {
    char *at = mmap(NULL, length, protection, flags, file, 0);
    if (at == MAP_FAILED) { perror("mmap"); exit(1); }
    return at;
}

// A mapping of its own: with neighbours of other permissions the kernel joins it with no other.
static char *fenced(size_t length) {
    char *at = map(length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1) + page;
    if (mprotect(at, length, PROT_READ | PROT_WRITE)) { perror("mprotect"); exit(1); }
    return at;
}

static void wait_for_end(char *at) {
    printf("%lx\n", (unsigned long)at);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) < 0 && errno == EINTR) {}
    exit(0);
}

int main(int count, char **words) {
    if (count < 3) return 2;
    const char *mode = words[1], *hex = words[2];
    if (!strcmp(mode, "heap")) {
        char *at = malloc(1000);
        decode(hex, at);
        wait_for_end(at);
    }
    if (!strcmp(mode, "sparse")) {
        size_t length = (size_t)8 << 30;
        char *at = fenced(length);
        madvise(at, length, MADV_NOHUGEPAGE);
        at[0] = at[length - 1] = 1;
        decode(hex, at + length / 2 + 100);
        wait_for_end(at + length / 2 + 100);
    }
    if (!strcmp(mode, "border")) {
        // Half of it lies before 16 MiB, half after.
        size_t length = (size_t)40 << 20, border = (size_t)16 << 20;
        char *at = fenced(length);
        memset(at, 1, length);
        decode(hex, at + border - 30);
        wait_for_end(at + border - 30);
    }
    if (!strcmp(mode, "large")) {
        char *at = fenced((size_t)64 << 20);
        memset(at, 1, (size_t)64 << 20);
        wait_for_end(at);
    }
    if (!strcmp(mode, "none")) {
        char *at = fenced(page);
        decode(hex, at);
        mprotect(at, page, PROT_NONE);
        wait_for_end(at);
    }
    if (!strcmp(mode, "memfd")) {
        int file = memfd_create("a\nb\033[2J", 0);
        if (file < 0 || ftruncate(file, (off_t)page)) { perror("memfd"); return 1; }
        char *writer = map(page, PROT_READ | PROT_WRITE, MAP_SHARED, file);
        decode(hex, writer);
        munmap(writer, page);
        volatile char *at = map(page, PROT_READ, MAP_PRIVATE, file);
        (void)at[0];
        wait_for_end((char *)at);
    }
    if (!strcmp(mode, "shared")) {
        char *at = map(page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
        decode(hex, at);
        wait_for_end(at);
    }
    if (!strcmp(mode, "out")) {
        // Own memory that went to swap, if there is some, and pages of a file that went from memory.
        size_t length = (size_t)16 << 20;
        char *at = fenced(length);
        memset(at, 1, length);
        int file = open(words[3], O_RDONLY);
        if (file < 0) { perror(words[3]); return 1; }
        volatile char *code = map(length, PROT_READ | PROT_EXEC, MAP_PRIVATE, file);
        for (size_t n = 0; n < length; n += page) (void)code[n];
        if (madvise(at, length, MADV_PAGEOUT) || madvise((char *)code, length, MADV_PAGEOUT)) perror("madvise");
        wait_for_end((char *)code);
    }
    if (!strcmp(mode, "exec")) {
        // The same program again and again; what it held is gone each time.
        char *at = malloc(1000);
        decode(hex, at);
        char number[32];
        snprintf(number, sizeof number, "%d", count > 3 ? atoi(words[3]) + 1 : 0);
        if (count <= 3) { printf("0\n"); fflush(stdout); }
        struct { int quit; } quit = {0};
        fcntl(0, F_SETFL, O_NONBLOCK);
        char byte;
        quit.quit = read(0, &byte, 1) == 0;
        if (quit.quit) return 0;
        usleep((useconds_t)(rand() ^ getpid() ^ atoi(number)) % 3000);
        execl("/proc/self/exe", words[0], mode, hex, number, (char *)NULL);
        return 1;
    }
    return 2;
}
