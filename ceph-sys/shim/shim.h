/* What rbd-guardian needs from librados and finds only in its C++ API, as plain C.
 * No function throws; no C++ object is ever seen by the caller. */
#ifndef RBD_GUARDIAN_SHIM_H
#define RBD_GUARDIAN_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One client that watches an object. */
typedef struct {
  const char *address; /* "10.0.0.5:0/525740053", NUL-terminated */
  int64_t client;      /* the number in "client.4126" */
  uint64_t cookie;     /* names the watch within that client */
  uint32_t timeout;    /* seconds */
} guardian_watcher_t;

/* What a header read found. Valid only while the callback runs. */
typedef struct {
  int rc;                             /* 0, or a negative errno: then nothing below counts */
  const guardian_watcher_t *watchers; /* NULL if there are none */
  size_t watchers_len;
  const char *lock;                   /* the bytes of xattr lock.rbd_lock; NULL if there is none */
  size_t lock_len;
  const char *data_pool;              /* the bytes of omap key data_pool_id; NULL if there is none, or not asked for */
  size_t data_pool_len;
} guardian_header_t;

typedef void (*guardian_header_cb)(void *arg, const guardian_header_t *header);

/* Reads watchers and exclusive lock of an RBD header in one operation, and the pool of its data if it is asked for.
 * On 0 the callback runs exactly once, on a librados thread, unless the cluster handle is shut down first: then
 * never. On a negative errno it never runs. `io` must live until then. */
int guardian_header_read(rados_ioctx_t io, const char *object, int with_data_pool, guardian_header_cb callback,
                         void *arg);

/* Writes the number of the PG that holds `object` (in the namespace of `io`) by the client's present map. */
int guardian_pg_of(rados_ioctx_t io, const char *object, uint32_t *pg);

#ifdef __cplusplus
}
#endif
#endif
