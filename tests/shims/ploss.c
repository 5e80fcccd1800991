/* A power cut for one process, by LD_PRELOAD.
 *
 * Every write below PLOSS_DIR is remembered together with the bytes that it replaced until its file is synced. SIGUSR2
 * puts back whatever was not synced, newest first, and kills the process with SIGKILL: what a disk without a battery
 * shows after the power came back, taken at its worst. Renames and unlinks are not undone; the shared-memory file of
 * SQLite is a mapping and means nothing after a cut. PLOSS_EIO=n makes the n-th sync of a file below PLOSS_DIR fail with
 * EIO, and every one after it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct undo {
    struct undo *older;
    char *path;
    off_t offset;
    size_t length; /* bytes that were there before */
    off_t size;    /* of the file before */
    char bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct undo *newest;
static const char *directory;
static long fail_sync, syncs;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

/* The path of a descriptor below the directory, or NULL. */
static char *path_of(int fd) {
    char link[64], path[PATH_MAX];
    if (directory == NULL) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = '\0';
    if (strncmp(path, directory, strlen(directory)) != 0) return NULL;
    length = strlen(path);
    if (length > 4 && strcmp(path + length - 4, "-shm") == 0) return NULL;
    return strdup(path);
}

/* Remember what [offset, offset + length) of a file holds. Takes the path over. */
static void remember(char *path, off_t offset, size_t length) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0) abort();
    size_t held = 0;
    if (offset < status.st_size) held = (size_t)(status.st_size - offset) < length ? (size_t)(status.st_size - offset) : length;
    struct undo *undo = malloc(sizeof *undo + held);
    if (undo == NULL || pread(fd, undo->bytes, held, offset) != (ssize_t)held) abort();
    close(fd);
    undo->path = path;
    undo->offset = offset;
    undo->length = held;
    undo->size = status.st_size;
    undo->older = newest;
    newest = undo;
}

static void forget(const char *path) {
    struct undo **at = &newest;
    while (*at != NULL) {
        struct undo *undo = *at;
        if (strcmp(undo->path, path) == 0) {
            *at = undo->older;
            free(undo->path);
            free(undo);
        } else {
            at = &undo->older;
        }
    }
}

static void *wait_for_the_cut(void *unused) {
    sigset_t set;
    int number;
    (void)unused;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigwait(&set, &number);
    pthread_mutex_lock(&lock); /* never let go: nobody writes any more */
    for (struct undo *undo = newest; undo != NULL; undo = undo->older) {
        int fd = open(undo->path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (real_pwrite(fd, undo->bytes, undo->length, undo->offset) != (ssize_t)undo->length) abort();
        if (real_ftruncate(fd, undo->size) < 0) abort();
        close(fd);
    }
    kill(getpid(), SIGKILL);
    return NULL;
}

__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    sigset_t set;
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    directory = getenv("PLOSS_DIR");
    if (directory == NULL) return;
    if (getenv("PLOSS_EIO") != NULL) fail_sync = atol(getenv("PLOSS_EIO"));
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (pthread_create(&thread, NULL, wait_for_the_cut, NULL) != 0) abort();
}

static ssize_t do_pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    char *path = path_of(fd);
    if (path == NULL) return real_pwrite(fd, bytes, length, offset);
    pthread_mutex_lock(&lock);
    remember(path, offset, length);
    ssize_t written = real_pwrite(fd, bytes, length, offset);
    pthread_mutex_unlock(&lock);
    return written;
}

static int do_ftruncate(int fd, off_t size) {
    char *path = path_of(fd);
    if (path == NULL) return real_ftruncate(fd, size);
    pthread_mutex_lock(&lock);
    remember(path, size, SIZE_MAX >> 1);
    int result = real_ftruncate(fd, size);
    pthread_mutex_unlock(&lock);
    return result;
}

static int do_sync(int fd, int (*real)(int)) {
    char *path = path_of(fd);
    if (path == NULL) return real(fd);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (fail_sync > 0 && ++syncs >= fail_sync) {
        errno = EIO;
    } else if ((result = real(fd)) == 0) {
        forget(path);
    }
    pthread_mutex_unlock(&lock);
    free(path);
    return result;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) { return do_pwrite(fd, bytes, length, offset); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return do_pwrite(fd, bytes, length, offset); }
int ftruncate64(int fd, off_t size) { return do_ftruncate(fd, size); }
int ftruncate(int fd, off_t size) { return do_ftruncate(fd, size); }
int fsync(int fd) { return do_sync(fd, real_fsync); }
int fdatasync(int fd) { return do_sync(fd, real_fdatasync); }

ssize_t write(int fd, const void *bytes, size_t length) {
    char *path = path_of(fd);
    if (path == NULL) return real_write(fd, bytes, length);
    pthread_mutex_lock(&lock);
    remember(path, lseek(fd, 0, SEEK_CUR), length);
    ssize_t written = real_write(fd, bytes, length);
    pthread_mutex_unlock(&lock);
    return written;
}
