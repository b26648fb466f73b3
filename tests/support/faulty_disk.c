/* A disk that fails at a stated moment, for tests: loaded with LD_PRELOAD, it counts what a process does to the files
   below one folder. The operation with the number `at` fails with `error`, or calls `callback` before it is done. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES = 1, READS = 2 };

static char root[PATH_MAX];
static long count, at = -1;
static int error, kinds, lasting, busy;
static void (*callback)(void);

void disk_arm(const char *folder, int which, long number, int with, int stays, void (*call)(void)) {
    snprintf(root, sizeof root, "%s", folder);
    kinds = which, at = number, error = with, lasting = stays, callback = call, count = 0;
}

long disk_count(void) { return count; }

/* Count an operation on `path`; return whether it has to fail. */
static int reached(int kind, const char *path) {
    size_t length = strlen(root);
    if (!length || busy || !(kinds & kind) || strncmp(path, root, length) || (path[length] && path[length] != '/'))
        return 0;
    long number = ++count;
    if (number != at && !(lasting && at > 0 && number > at)) return 0;
    if (callback) {
        busy = 1;
        callback();
        busy = 0;
        return 0;
    }
    errno = error;
    return error != 0;
}

static int reached_at(int kind, int folder, const char *path) {
    char whole[2 * PATH_MAX], link[64], base[PATH_MAX] = "";
    if (!*root || busy || !path) return 0;
    if (path[0] == '/') return reached(kind, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return reached(kind, whole);
}

static int reached_file(int kind, int file) {
    char link[64], path[PATH_MAX];
    if (!*root || busy) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int before = errno;
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = before;
    if (n < 0) return 0;
    path[n] = 0;
    return reached(kind, path);
}


#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        REAL(name);                                                                   \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        if (!(flags & O_DIRECTORY) && reached_at(changes(flags) ? WRITES : READS, AT_FDCWD, path)) return -1; \
        return real(path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                  \
    int name(int folder, const char *path, int flags, ...) {                          \
        REAL(name);                                                                   \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        if (!(flags & O_DIRECTORY) && reached_at(changes(flags) ? WRITES : READS, folder, path)) return -1; \
        return real(folder, path, flags, mode);                                       \
    }
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(kind, type, name, typed, given)                                       \
    type name typed { REAL(name); if (reached_file(kind, file)) return -1; return real given; }
ON_FILE(WRITES, ssize_t, write, (int file, const void *from, size_t size), (file, from, size))
ON_FILE(WRITES, ssize_t, pwrite, (int file, const void *from, size_t size, off_t to), (file, from, size, to))
ON_FILE(WRITES, ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t to), (file, from, size, to))
ON_FILE(WRITES, ssize_t, writev, (int file, const struct iovec *parts, int n), (file, parts, n))
ON_FILE(WRITES, int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(WRITES, int, ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(WRITES, int, fsync, (int file), (file))
ON_FILE(WRITES, int, fdatasync, (int file), (file))
ON_FILE(WRITES, ssize_t, sendfile, (int file, int in, off_t *from, size_t size), (file, in, from, size))
ON_FILE(WRITES, ssize_t, sendfile64, (int file, int in, off64_t *from, size_t size), (file, in, from, size))
ON_FILE(READS, ssize_t, read, (int file, void *to, size_t size), (file, to, size))
ON_FILE(READS, ssize_t, pread, (int file, void *to, size_t size, off_t from), (file, to, size, from))
ON_FILE(READS, ssize_t, pread64, (int file, void *to, size_t size, off64_t from), (file, to, size, from))

ssize_t copy_file_range(int in, off64_t *from, int file, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (reached_file(WRITES, file)) return -1;
    return real(in, from, file, to, size, flags);
}

#define ON_PATH(name, typed, folder, path, given)                                     \
    int name typed { REAL(name); if (reached_at(WRITES, folder, path)) return -1; return real given; }
ON_PATH(rename, (const char *from, const char *to), AT_FDCWD, to, (from, to))
ON_PATH(renameat, (int a, const char *from, int b, const char *to), b, to, (a, from, b, to))
ON_PATH(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(mkdirat, (int folder, const char *path, mode_t mode), folder, path, (folder, path, mode))
ON_PATH(unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlinkat, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
ON_PATH(rmdir, (const char *path), AT_FDCWD, path, (path))
ON_PATH(truncate, (const char *path, off_t size), AT_FDCWD, path, (path, size))
ON_PATH(truncate64, (const char *path, off64_t size), AT_FDCWD, path, (path, size))
ON_PATH(symlink, (const char *to, const char *path), AT_FDCWD, path, (to, path))
ON_PATH(link, (const char *from, const char *to), AT_FDCWD, to, (from, to))
