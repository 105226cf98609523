/*
 * What stands in for a host's kernel rbd client: one RADOS client that shows images as files, for loop devices to stand on.
 *
 *   mapper FOLDER
 *
 * FOLDER/POOL:IMAGE and FOLDER/POOL:IMAGE@SNAPSHOT exist by being asked for. An image is open (and watched, unless a snapshot) exactly
 * as long as its file is: rbd-fuse never lets go of one. Nothing is cached: what is acknowledged was acknowledged by the storage, and
 * its errors are passed on as they are. Ends when FOLDER is unmounted. Built by tests/lab/setup.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
#include <fuse3/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IMAGES = 256, NAME = 512 };

struct image {
    char name[NAME];
    int users;
    rados_ioctx_t pool;
    rbd_image_t rbd;
};

static rados_t cluster;
static struct image images[IMAGES];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;

static int open_image(const char *name, struct image *image, int just_look)
{
    char copy[NAME], *at, *snapshot = NULL;
    int failed;

    if (strlen(name) >= NAME || !(at = strchr(strcpy(copy, name), ':')))
        return -ENOENT;
    *at++ = '\0';
    if ((snapshot = strchr(at, '@')))
        *snapshot++ = '\0';
    if ((failed = rados_ioctx_create(cluster, copy, &image->pool)))
        return failed;
    failed = just_look || snapshot ? rbd_open_read_only(image->pool, at, &image->rbd, snapshot)
                                   : rbd_open(image->pool, at, &image->rbd, NULL);
    if (failed)
        rados_ioctx_destroy(image->pool);
    return failed;
}

static void close_image(struct image *image)
{
    rbd_close(image->rbd);
    rados_ioctx_destroy(image->pool);
}

static struct image *find(const char *name)
{
    for (struct image *image = images; image < images + IMAGES; image++)
        if (image->users && !strcmp(image->name, name))
            return image;
    return NULL;
}

static int do_getattr(const char *path, struct stat *st, struct fuse_file_info *file)
{
    struct image look = { .users = 0 };
    uint64_t size = 0;
    int failed = 0;
    (void)file;

    if (!strcmp(path, "/")) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        return 0;
    }
    pthread_mutex_lock(&table);
    struct image *image = find(path + 1);
    if (image) {
        failed = rbd_get_size(image->rbd, &size);
    } else if (!(failed = open_image(path + 1, &look, 1))) {
        failed = rbd_get_size(look.rbd, &size);
        close_image(&look);
    }
    pthread_mutex_unlock(&table);
    st->st_mode = S_IFREG | 0600;
    st->st_nlink = 1;
    st->st_size = (off_t)size;
    return failed;
}

static int do_open(const char *path, struct fuse_file_info *file)
{
    int failed = 0;

    pthread_mutex_lock(&table);
    struct image *image = find(path + 1);
    if (!image) {
        for (image = images; image < images + IMAGES && image->users; image++)
            ;
        failed = image == images + IMAGES ? -ENFILE : open_image(path + 1, image, 0);
        if (!failed)
            strcpy(image->name, path + 1);
    }
    if (!failed) {
        image->users++;
        file->fh = (uint64_t)(image - images);
        file->direct_io = 1;
    }
    pthread_mutex_unlock(&table);
    return failed;
}

static int do_release(const char *path, struct fuse_file_info *file)
{
    struct image *image = &images[file->fh];
    (void)path;

    pthread_mutex_lock(&table);
    /* Closed before it is given up: nobody may find it in between. */
    if (image->users == 1)
        close_image(image);
    image->users--;
    pthread_mutex_unlock(&table);
    return 0;
}

static int do_read(const char *path, char *buffer, size_t size, off_t at, struct fuse_file_info *file)
{
    (void)path;
    return (int)rbd_read(images[file->fh].rbd, (uint64_t)at, size, buffer);
}

static int do_write(const char *path, const char *buffer, size_t size, off_t at, struct fuse_file_info *file)
{
    (void)path;
    return (int)rbd_write(images[file->fh].rbd, (uint64_t)at, size, buffer);
}

static int do_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    (void)path, (void)data_only;
    return rbd_flush(images[file->fh].rbd);
}

static int do_fallocate(const char *path, int mode, off_t at, off_t length, struct fuse_file_info *file)
{
    (void)path;
    if (!(mode & FALLOC_FL_PUNCH_HOLE))
        return -EOPNOTSUPP;
    int done = rbd_discard(images[file->fh].rbd, (uint64_t)at, (uint64_t)length);
    return done < 0 ? done : 0;
}

static void *do_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
    (void)conn;
    config->attr_timeout = config->entry_timeout = config->negative_timeout = 0;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = do_init,
    .getattr = do_getattr,
    .open = do_open,
    .release = do_release,
    .read = do_read,
    .write = do_write,
    .fsync = do_fsync,
    .fallocate = do_fallocate,
};

int main(int count, char **words)
{
    char *fuse[] = { words[0], "-f", "-o", "fsname=mapper", words[1], NULL };
    int failed;

    if (count != 2)
        return fprintf(stderr, "usage: mapper FOLDER\n"), 2;
    if ((failed = rados_create(&cluster, "admin")) || (failed = rados_conf_read_file(cluster, NULL)) ||
        (failed = rados_connect(cluster)))
        return fprintf(stderr, "mapper: no cluster: %s\n", strerror(-failed)), 1;
    return fuse_main(5, fuse, &operations, NULL);
}
