/*
 * The program of the lab's containers: writes numbered blocks into its root file system, each made durable before the next, and goes
 * on whatever the disk answers. Built -static into the lab's image by tests/lab/setup.
 *
 *   writer FOLDER LOGS
 *
 * Block n goes to slot n modulo SLOTS of FOLDER/ring.WRITER; each EVERY-th also becomes a file of its own, FOLDER/WRITER/n, and the one
 * KEPT files before it goes: a file system's metadata is to change as well as its data.
 * A block is laid out as in src/writer.py. LOGS/HOSTNAME.WRITER.log gets a record of kind (0 acknowledged, else errno), number,
 * CLOCK_MONOTONIC in ns for each; it lies on the host, and says what the writer heard even when the disk does not answer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, SLOTS = 256, EVERY = 16, KEPT = 32, PAUSE_NS = 20 * 1000 * 1000 };

struct __attribute__((packed)) record {
    uint32_t kind;
    uint64_t number;
    uint64_t at;
};

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
}

static uint32_t crc32(const unsigned char *bytes, size_t count)
{
    uint32_t crc = ~0u;
    while (count--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xEDB88320 & -(crc & 1));
    }
    return ~crc;
}

static void fill(char *block, uint32_t writer, uint64_t number)
{
    memset(block, '.', BLOCK);
    memcpy(block, "lab-blok", 8);
    memcpy(block + 8, &writer, 4);
    memcpy(block + 12, &number, 8);
    uint32_t sum = crc32((unsigned char *)block, BLOCK - 4);
    memcpy(block + BLOCK - 4, &sum, 4);
}

/* Writes a block durably to a place in a file; an errno. The file is opened anew each time: nothing is lost by an error but the write. */
static int put(const char *path, const char *block, off_t at)
{
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644), error = 0;
    if (file < 0)
        return errno;
    ssize_t written = pwrite(file, block, BLOCK, at);
    if (written != BLOCK)
        error = written < 0 ? errno : EIO;
    else if (fsync(file))
        error = errno;
    close(file);
    return error;
}

int main(int count, char **words)
{
    static char block[BLOCK], host[256], ring[4096], folder[4096], path[8192];
    if (count != 3)
        return fprintf(stderr, "usage: writer FOLDER LOGS\n"), 2;
    /* Another one for each start on any host: they share the clock. */
    uint32_t writer = (uint32_t)(now() / 1000000) & 0x7fffffff;
    gethostname(host, sizeof host - 1);
    mkdir(words[1], 0755);
    snprintf(ring, sizeof ring, "%s/ring.%u", words[1], writer);
    snprintf(folder, sizeof folder, "%s/%u", words[1], writer);
    mkdir(folder, 0755);
    snprintf(path, sizeof path, "%s/%s.%u.log", words[2], host, writer);
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0)
        return perror(path), 1;
    for (uint64_t number = 1;; number++) {
        fill(block, writer, number);
        int error = put(ring, block, (off_t)(number % SLOTS * BLOCK));
        if (!error && number % EVERY == 0) {
            snprintf(path, sizeof path, "%s/%llu", folder, (unsigned long long)number);
            error = put(path, block, 0);
            snprintf(path, sizeof path, "%s/%llu", folder, (unsigned long long)(number - EVERY * KEPT));
            if (!error && number > EVERY * KEPT && unlink(path) && errno != ENOENT)
                error = errno;
        }
        struct record record = { (uint32_t)error, number, now() };
        if (write(log, &record, sizeof record) != sizeof record)
            return perror("log"), 1;
        if (error)
            nanosleep(&(struct timespec){ 0, PAUSE_NS }, NULL);
    }
}
