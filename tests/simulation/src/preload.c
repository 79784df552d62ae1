// What a simulated process gets from its machine: a disk that can lose power, one source of randomness, a clock that
// stands. Preloaded (LD_PRELOAD) before libc into the process that simulates one seed, and into nothing else.
//
// The disk: files below $FLUVIAL_SIM_DISK, a directory on a file system of its own kind (tmpfs), are written as always,
// and every write since the last fsync of its file is remembered with what it replaced. A power cut is a copy of a
// directory in which those writes are undone and a random part of them, torn at sectors, is done again; names that
// were not followed by an fsync of the directory may be lost. SQLite and the standard library are not told.
//
// Commands are written into $FLUVIAL_SIM_DISK/control, and the answer is read from the same file:
//   arm DIR N               after N more operations below DIR nothing reaches its disk: the power is about to go
//   fail DIR WRITE SYNC     from now on writes and syncs below DIR fail with these errnos (0: they do not)
//   power DIR NEW SEED      what a power cut leaves of DIR is put into NEW
//   kill DIR NEW            what a killed process leaves of DIR is put into NEW: everything that was written
// Deliberately absent: mmap (SQLite's -shm alone, which no restart reads), O_APPEND, threads: one thread simulates.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) real_##name
#define LOAD(name) \
    if (!REAL(name)) REAL(name) = (__typeof__(REAL(name)))dlsym(RTLD_NEXT, #name)

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static char root[512];
static dev_t root_dev;
static ino_t control_ino;
static uint64_t entropy = 1;

static uint64_t mix(uint64_t *state) { // splitmix64
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

__attribute__((constructor)) static void begin(void) {
    LOAD(write);
    LOAD(pwrite64);
    LOAD(ftruncate64);
    LOAD(fsync);
    LOAD(fdatasync);
    LOAD(unlink);
    LOAD(clock_gettime);
    const char *seed = getenv("FLUVIAL_SIM_SEED"), *dir = getenv("FLUVIAL_SIM_DISK");
    if (seed) entropy = strtoull(seed, NULL, 10) * 2 + 1;
    if (!dir) return;
    snprintf(root, sizeof root, "%s/", dir);
    char control[600];
    snprintf(control, sizeof control, "%scontrol", root);
    struct stat64 st;
    if (stat64(control, &st) == 0) root_dev = st.st_dev, control_ino = st.st_ino;
}

// --- randomness and clock ---------------------------------------------------------------------------------------------

ssize_t getrandom(void *buffer, size_t length, unsigned flags) {
    (void)flags;
    for (size_t at = 0; at < length; at++) ((unsigned char *)buffer)[at] = (unsigned char)mix(&entropy);
    return (ssize_t)length;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    LOAD(clock_gettime);
    if (clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID) return REAL(clock_gettime)(clock, now);
    now->tv_sec = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? 1767225600 : 1000000;
    now->tv_nsec = 0;
    return 0;
}

// --- what was written and not synced ------------------------------------------------------------------------------------

typedef struct change {
    struct change *next; // the newest first
    ino_t ino;
    int truncate;
    off64_t at;           // where it was written, or the new size
    off64_t old_size;
    size_t length, kept;  // bytes of `after` and of `before`
    unsigned char *after, *before;
} change;

typedef struct {
    char name[256];
    ino_t ino;
    int fd;
} name_kept;

typedef struct {
    char dir[512]; // with a slash at its end
    long left;     // operations until nothing reaches the disk; -1: not armed
    int write_error, sync_error;
    name_kept names[64]; // the directory as of its last fsync
    int name_count, listed;
    unsigned long operations, failed;
} disk;

#define BUCKETS 1024
static change *changes[BUCKETS];
static disk *disks[8192]; // one for each start of a node
static int disk_count;

static disk *disk_of(const char *path) {
    for (int at = disk_count - 1; at >= 0; at--)
        if (strncmp(path, disks[at]->dir, strlen(disks[at]->dir)) == 0) return disks[at];
    if (!*root || strncmp(path, root, strlen(root)) != 0) return NULL;
    const char *slash = strchr(path + strlen(root), '/');
    if (!slash || disk_count == (int)(sizeof disks / sizeof *disks)) return NULL;
    disk *one = disks[disk_count++] = calloc(1, sizeof *one);
    snprintf(one->dir, sizeof one->dir, "%.*s", (int)(slash + 1 - path), path);
    one->left = -1;
    return one;
}

static disk *disk_of_fd(int fd) {
    char link[64], path[600];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 2);
    if (length <= 0) return NULL;
    path[length] = '/'; // a directory itself is below its own name too
    path[length + 1] = 0;
    return disk_of(path);
}

// 0, or the errno with which an operation of this kind fails now.
static int refused(disk *one, int sync) {
    if (!one) return 0;
    one->operations++;
    int error = sync ? one->sync_error : one->write_error;
    if (one->left == 0) error = EIO;
    if (one->left > 0) one->left--;
    if (error) one->failed++;
    return error;
}

static int ours(int fd, struct stat64 *st) {
    return root_dev && fstat64(fd, st) == 0 && st->st_dev == root_dev;
}

static unsigned char *read_range(int fd, off64_t at, size_t length, size_t *got) {
    unsigned char *bytes = malloc(length ? length : 1);
    *got = 0;
    while (*got < length) {
        ssize_t now = pread64(fd, bytes + *got, length - *got, at + (off64_t)*got);
        if (now <= 0) break;
        *got += (size_t)now;
    }
    return bytes;
}

static void remember(int fd, const struct stat64 *st, int truncate, off64_t at, const void *after, size_t length) {
    change *one = calloc(1, sizeof *one);
    one->ino = st->st_ino, one->truncate = truncate, one->at = at, one->old_size = st->st_size, one->length = length;
    size_t replaced = truncate ? (st->st_size > at ? (size_t)(st->st_size - at) : 0) : length;
    one->before = read_range(fd, at, replaced, &one->kept);
    if (length) one->after = memcpy(malloc(length), after, length);
    change **bucket = &changes[st->st_ino % BUCKETS];
    one->next = *bucket, *bucket = one;
}

static void forget(ino_t ino) {
    change **link = &changes[ino % BUCKETS];
    while (*link) {
        change *one = *link;
        if (one->ino != ino) {
            link = &one->next;
            continue;
        }
        *link = one->next;
        free(one->before), free(one->after), free(one);
    }
}

// --- power cuts ---------------------------------------------------------------------------------------------------------

typedef struct {
    unsigned char *bytes;
    off64_t size, room;
} image;

static void resize(image *file, off64_t size) {
    if (size > file->room) {
        file->room = size * 2;
        file->bytes = realloc(file->bytes, (size_t)file->room);
    }
    if (size > file->size) memset(file->bytes + file->size, 0, (size_t)(size - file->size));
    file->size = size;
}

static void put(image *file, off64_t at, const void *bytes, size_t length) {
    if (at + (off64_t)length > file->size) resize(file, at + (off64_t)length);
    if (length) memcpy(file->bytes + at, bytes, length);
}

// Undoes what was not synced and does a random part of it again. Returns how many changes are lost, whole or in part.
static unsigned long lose(image *file, ino_t ino, uint64_t *seed) {
    size_t count = 0, lost = 0;
    for (change *one = changes[ino % BUCKETS]; one; one = one->next) count += one->ino == ino;
    change **list = calloc(count + 1, sizeof *list);
    size_t at = count;
    for (change *one = changes[ino % BUCKETS]; one; one = one->next) {
        if (one->ino != ino) continue;
        list[--at] = one; // the newest comes first, and is the last of the list
        put(file, one->at, one->before, one->kept);
        resize(file, one->old_size);
    }
    uint64_t way = mix(seed) % 4, prefix = count ? mix(seed) % (count + 1) : 0;
    for (at = 0; at < count; at++) {
        change *one = list[at];
        int survives = way == 0 ? 0 : way == 1 ? 1 : way == 2 ? at < prefix : (int)(mix(seed) % 2);
        size_t length = one->length;
        if (survives && way >= 2 && length > 512 && mix(seed) % 8 == 0) {
            length = (size_t)(mix(seed) % (length / 512)) * 512;
            lost++;
        }
        lost += !survives;
        if (survives && one->truncate) resize(file, one->at);
        else if (survives) put(file, one->at, one->after, length);
    }
    free(list);
    return lost;
}

static int copy_out(int from, ino_t ino, const char *to, uint64_t *seed, unsigned long *lost) {
    struct stat64 st;
    if (fstat64(from, &st) != 0) return -1;
    size_t got;
    image file = {.bytes = read_range(from, 0, (size_t)st.st_size, &got), .size = st.st_size, .room = st.st_size};
    if (seed) *lost += lose(&file, ino, seed);
    int fd = open64(to, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0) return -1;
    off64_t done = 0;
    while (done < file.size) {
        ssize_t now = REAL(pwrite64)(fd, file.bytes + done, (size_t)(file.size - done), done);
        if (now <= 0) break;
        done += now;
    }
    close(fd);
    free(file.bytes);
    return done == file.size ? 0 : -1;
}

static int ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static long copy_dir(const char *dir, const char *to, uint64_t *seed, unsigned long *names) {
    char path[900], target[900];
    unsigned long lost = 0;
    snprintf(path, sizeof path, "%s/", dir);
    disk *one = disk_of(path);
    DIR *list = opendir(dir);
    if (!list) return -1;
    struct dirent64 *entry;
    while ((entry = readdir64(list))) {
        const char *name = entry->d_name;
        if (*name == '.' || strcmp(name, "lock") == 0 || ends_with(name, "-shm")) continue;
        int durable = !one || !one->listed || !seed;
        for (int at = 0; one && at < one->name_count; at++)
            durable |= strcmp(one->names[at].name, name) == 0 && one->names[at].ino == entry->d_ino;
        if (!durable && mix(seed) % 2) {
            (*names)++;
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", dir, name);
        snprintf(target, sizeof target, "%s/%s", to, name);
        int fd = open64(path, O_RDONLY);
        if (fd < 0 || copy_out(fd, entry->d_ino, target, seed, &lost) != 0) return -1;
        close(fd);
        forget(entry->d_ino); // nobody reads this file again
    }
    closedir(list);
    for (int at = 0; one && seed && at < one->name_count; at++) {
        name_kept *kept = &one->names[at];
        struct stat64 st;
        snprintf(path, sizeof path, "%s/%s", dir, kept->name);
        snprintf(target, sizeof target, "%s/%s", to, kept->name);
        int gone = stat64(path, &st) != 0;
        if (gone || st.st_ino != kept->ino) {
            // Removed or replaced without an fsync of the directory: the old file may be back, if no new one is there.
            if (mix(seed) % 2 == 0 || stat64(target, &st) == 0) continue;
            (*names)++;
            if (copy_out(kept->fd, kept->ino, target, seed, &lost) != 0) return -1;
        }
    }
    return (long)lost;
}

static void list_names(int fd) {
    disk *one = disk_of_fd(fd);
    if (!one) return;
    for (int at = 0; at < one->name_count; at++) close(one->names[at].fd);
    one->name_count = 0, one->listed = 1;
    DIR *list = opendir(one->dir);
    if (!list) return;
    struct dirent64 *entry;
    while ((entry = readdir64(list))) {
        if (*entry->d_name == '.' || ends_with(entry->d_name, "-shm") || strcmp(entry->d_name, "lock") == 0) continue;
        if (one->name_count == (int)(sizeof one->names / sizeof *one->names)) break;
        char path[900];
        snprintf(path, sizeof path, "%s%s", one->dir, entry->d_name);
        name_kept *kept = &one->names[one->name_count++];
        snprintf(kept->name, sizeof kept->name, "%s", entry->d_name);
        kept->ino = entry->d_ino, kept->fd = open64(path, O_RDONLY);
    }
    closedir(list);
}

static void command(int fd, const char *text, size_t length) {
    char line[2048], dir[600], to[600], answer[128] = "bad";
    snprintf(line, sizeof line, "%.*s", (int)length, text);
    long long first, second;
    unsigned long names = 0;
    char slashed[700];
    if (sscanf(line, "arm %599s %lld", dir, &first) == 2) {
        snprintf(slashed, sizeof slashed, "%s/", dir);
        disk *one = disk_of(slashed);
        if (one) one->left = (long)first, snprintf(answer, sizeof answer, "ok");
    } else if (sscanf(line, "fail %599s %lld %lld", dir, &first, &second) == 3) {
        snprintf(slashed, sizeof slashed, "%s/", dir);
        disk *one = disk_of(slashed);
        if (one) {
            snprintf(answer, sizeof answer, "ok %lu", one->failed);
            one->write_error = (int)first, one->sync_error = (int)second, one->failed = 0;
        }
    } else if (sscanf(line, "power %599s %599s %lld", dir, to, &first) == 3) {
        uint64_t seed = (uint64_t)first;
        long lost = copy_dir(dir, to, &seed, &names);
        if (lost >= 0) snprintf(answer, sizeof answer, "ok %ld %lu", lost, names);
    } else if (sscanf(line, "kill %599s %599s", dir, to) == 2) {
        if (copy_dir(dir, to, NULL, &names) >= 0) snprintf(answer, sizeof answer, "ok 0 0");
    }
    REAL(ftruncate64)(fd, 0);
    REAL(pwrite64)(fd, answer, strlen(answer), 0);
}

// --- the calls ----------------------------------------------------------------------------------------------------------

ssize_t write(int fd, const void *bytes, size_t length) {
    LOAD(write);
    struct stat64 st;
    if (!ours(fd, &st) || !S_ISREG(st.st_mode)) return REAL(write)(fd, bytes, length);
    if (st.st_ino == control_ino) {
        command(fd, bytes, length);
        return (ssize_t)length;
    }
    int error = refused(disk_of_fd(fd), 0);
    if (error) return errno = error, -1;
    remember(fd, &st, 0, lseek64(fd, 0, SEEK_CUR), bytes, length);
    return REAL(write)(fd, bytes, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    LOAD(pwrite64);
    struct stat64 st;
    if (!ours(fd, &st) || !S_ISREG(st.st_mode)) return REAL(pwrite64)(fd, bytes, length, at);
    int error = refused(disk_of_fd(fd), 0);
    if (error) return errno = error, -1;
    remember(fd, &st, 0, at, bytes, length);
    return REAL(pwrite64)(fd, bytes, length, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

int ftruncate64(int fd, off64_t size) {
    LOAD(ftruncate64);
    struct stat64 st;
    if (!ours(fd, &st) || !S_ISREG(st.st_mode)) return REAL(ftruncate64)(fd, size);
    int error = refused(disk_of_fd(fd), 0);
    if (error) return errno = error, -1;
    remember(fd, &st, 1, size, NULL, 0);
    return REAL(ftruncate64)(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int synced(int fd, int (*real)(int)) {
    struct stat64 st;
    if (!ours(fd, &st)) return real(fd);
    int error = refused(disk_of_fd(fd), 1);
    if (error) return errno = error, -1;
    if (S_ISDIR(st.st_mode)) list_names(fd);
    else forget(st.st_ino);
    return 0;
}

int fsync(int fd) {
    LOAD(fsync);
    return synced(fd, REAL(fsync));
}

int fdatasync(int fd) {
    LOAD(fdatasync);
    return synced(fd, REAL(fdatasync));
}

int unlink(const char *path) {
    LOAD(unlink);
    if (!*root || strncmp(path, root, strlen(root)) != 0) return REAL(unlink)(path);
    int error = refused(disk_of(path), 0);
    if (error) return errno = error, -1;
    struct stat64 st;
    if (lstat64(path, &st) == 0 && st.st_nlink == 1) forget(st.st_ino);
    return REAL(unlink)(path);
}
