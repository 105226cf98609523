/*
 * The one program of the lab's krbd machine that busybox has no applet for. Built -static by tests/lab/setup.
 *
 *   guest run TOKEN COMMAND            runs COMMAND by sh, then writes "TOKEN STATUS LENGTH\n" and its output in one write
 *   guest serve                        does that for each line "TOKEN COMMAND" of stdin, side by side
 *   guest write DEVICE WRITER NUMBER   writes one numbered block; the exit status is the errno, 0 when acknowledged
 *   guest loop DEVICE WRITER           writes numbered blocks, from 1, until it is killed; one line an answer on stdout:
 *                                      "WRITER NUMBER ERRNO NANOSECONDS", errno 0 when acknowledged, time as of `clock`
 *   guest clock                        prints CLOCK_MONOTONIC in ns
 *
 * All writes are O_DIRECT: what is acknowledged was acknowledged by the storage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { BLOCK = 4096 };

static int die(const char *what)
{
    int error = errno;
    fprintf(stderr, "guest: %s: %s\n", what, strerror(error));
    return error ? error : 255;
}

static int run(const char *token, const char *command)
{
    static char message[32 * 1024]; /* what the virtio port takes in one write */
    int output = memfd_create("output", MFD_CLOEXEC);
    pid_t child = output < 0 ? -1 : fork();
    if (child == 0) {
        dup2(output, 1);
        dup2(output, 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int state = 0;
    if (child < 0 || waitpid(child, &state, 0) < 0)
        return die("run");
    int status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    char *body = message + 128;
    ssize_t length = pread(output, body, sizeof message - 128, 0);
    if (length < 0)
        return die("run: output");
    char head[128];
    int before = snprintf(head, sizeof head, "%.64s %d %zd\n", token, status, length);
    memcpy(body - before, head, (size_t)before);
    return write(1, body - before, (size_t)(before + length)) < 0 ? die("run: answer") : 0;
}

/* Not in the shell: its `read` starts over, without what it had, when a child ends in the middle of a line. */
static int serve(void)
{
    char *line = NULL;
    size_t size = 0;
    for (ssize_t length; (length = getline(&line, &size, stdin)) > 0;) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        line[length - 1] = '\0';
        char *command = strchr(line, ' ');
        if (!command)
            continue;
        *command++ = '\0';
        if (fork() == 0) {
            dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
            _exit(run(line, command));
        }
    }
    return 0;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* The CRC-32 of zlib. */
static uint32_t crc32(const unsigned char *bytes, size_t length)
{
    static uint32_t table[256];
    for (uint32_t i = 0; !table[255] && i < 256; i++) {
        uint32_t sum = i;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
        table[i] = sum;
    }
    uint32_t sum = ~UINT32_C(0);
    while (length--)
        sum = sum >> 8 ^ table[(sum ^ *bytes++) & 255];
    return ~sum;
}

struct device {
    int fd;
    uint64_t slots;
};

static int open_device(const char *path, struct device *device)
{
    uint64_t size = 0;
    device->fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (device->fd < 0 || ioctl(device->fd, BLKGETSIZE64, &size) < 0)
        return die(path);
    device->slots = size / BLOCK;
    errno = EINVAL;
    return device->slots ? 0 : die(path);
}

/* Block and place are those of writer.py, so that one checker reads them all. Returns the errno. */
static int write_block(const struct device *device, uint32_t writer, uint64_t number)
{
    static unsigned char block[BLOCK] __attribute__((aligned(BLOCK)));
    memset(block, '.', sizeof block);
    memcpy(block, "lab-blok", 8);
    memcpy(block + 8, &writer, sizeof writer);
    memcpy(block + 12, &number, sizeof number);
    uint32_t sum = crc32(block, BLOCK - sizeof sum);
    memcpy(block + BLOCK - sizeof sum, &sum, sizeof sum);
    ssize_t written = pwrite(device->fd, block, BLOCK, (off_t)(number % device->slots * BLOCK));
    return written == BLOCK ? 0 : written < 0 ? errno : EIO;
}

static int write_once(const char *path, uint32_t writer, uint64_t number)
{
    struct device device;
    int error = open_device(path, &device);
    return error ? error : write_block(&device, writer, number);
}

static int loop(const char *path, uint32_t writer)
{
    struct device device;
    int error = open_device(path, &device);
    if (error)
        return error;
    for (uint64_t number = 1;; number++) {
        char line[96];
        error = write_block(&device, writer, number);
        int length = snprintf(line, sizeof line, "%" PRIu32 " %" PRIu64 " %d %" PRIu64 "\n", writer, number, error, now());
        if (write(1, line, (size_t)length) < 0)
            return die("answer");
        if (error)
            usleep(10000); /* a refused writer must not take the machine's one processor */
    }
}

int main(int count, char **word)
{
    if (count == 4 && !strcmp(word[1], "run"))
        return run(word[2], word[3]);
    if (count == 2 && !strcmp(word[1], "serve"))
        return serve();
    if (count == 5 && !strcmp(word[1], "write"))
        return write_once(word[2], (uint32_t)strtoul(word[3], NULL, 10), strtoull(word[4], NULL, 10));
    if (count == 4 && !strcmp(word[1], "loop"))
        return loop(word[2], (uint32_t)strtoul(word[3], NULL, 10));
    if (count == 2 && !strcmp(word[1], "clock"))
        return printf("%" PRIu64 "\n", now()) < 0;
    fputs("usage: guest run TOKEN COMMAND | serve | write DEVICE WRITER NUMBER | loop DEVICE WRITER | clock\n", stderr);
    return 255;
}
