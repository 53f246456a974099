/* System calls that fail, for LD_PRELOAD: a disk that lies, is slow, or says no, without root.

   FAULT_CALL=write|fdatasync   which call; pwrite() counts as write()
   FAULT_PATH=/all.log          on files whose path ends so
   FAULT_HOW=short|lie|eio|enospc|delay   what it does: writes 10 bytes and says so; writes 10 and claims all, or
                                syncs nothing and says so; fails; waits FAULT_MS milliseconds and does its work
   FAULT_MARK=path                      a file that is made when it happens
   FAULT_FIRST=n FAULT_EVERY=m FAULT_TIMES=k   at the n-th call, and every m-th after it, k times at most
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static int due(const char *call, int descriptor) {
    static long count, done;
    const char *which = getenv("FAULT_CALL"), *end = getenv("FAULT_PATH");
    char link[64], path[4096];
    ssize_t size;
    long now;
    if (!which || strcmp(which, call) || !end)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    size = readlink(link, path, sizeof path - 1);
    if (size < (ssize_t)strlen(end))
        return 0;
    path[size] = 0;
    if (strcmp(path + size - strlen(end), end))
        return 0;
    now = __sync_add_and_fetch(&count, 1) - number("FAULT_FIRST", 1);
    if (now < 0 || now % number("FAULT_EVERY", 1))
        return 0;
    if (__sync_add_and_fetch(&done, 1) > number("FAULT_TIMES", 1000000))
        return 0;
    if (getenv("FAULT_MARK"))
        close(open(getenv("FAULT_MARK"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    return 1;
}

static int how(const char *name) {
    const char *text = getenv("FAULT_HOW");
    return text && !strcmp(text, name);
}

static void wait_a_while(void) {
    long ms = number("FAULT_MS", 300);
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* How many bytes to write for real when this call is due: -1 for none, as it fails. */
static ssize_t part(size_t size) {
    if (how("delay")) {
        wait_a_while();
        return size;
    }
    if (how("short") || how("lie"))
        return size < 10 ? size : 10;
    errno = how("enospc") ? ENOSPC : EIO;
    return -1;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    ssize_t some, done;
    if (!real)
        real = dlsym(RTLD_NEXT, "write");
    if (!due("write", descriptor))
        return real(descriptor, data, size);
    if ((some = part(size)) < 0)
        return -1;
    done = real(descriptor, data, some);
    return how("lie") ? (ssize_t)size : done;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    ssize_t some, done;
    if (!real)
        real = dlsym(RTLD_NEXT, "pwrite64");
    if (!due("write", descriptor))
        return real(descriptor, data, size, offset);
    if ((some = part(size)) < 0)
        return -1;
    done = real(descriptor, data, some, offset);
    return how("lie") ? (ssize_t)size : done;
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = dlsym(RTLD_NEXT, "fdatasync");
    if (!due("fdatasync", descriptor))
        return real(descriptor);
    if (how("lie"))
        return 0;
    if (how("delay")) {
        wait_a_while();
        return real(descriptor);
    }
    errno = EIO;
    return -1;
}
