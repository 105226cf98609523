#include "shim.h"

#include <cerrno>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <vector>

#include <rados/librados.hpp>

namespace {

const char *const LOCK_XATTR = "lock.rbd_lock";
const char *const DATA_POOL_KEY = "data_pool_id";

// Runs `body` and turns whatever it throws into a negative errno: no exception may reach a C caller or librados.
template <typename Body> int guarded(Body &&body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return -ENOMEM;
  } catch (...) {
    return -EIO;
  }
}

// Everything librados writes into while the operation is under way; freed by its callback.
struct HeaderRead {
  guardian_header_cb callback;
  void *arg;
  std::list<obj_watch_t> watchers;
  int watchers_rc = 0;
  librados::bufferlist lock;
  int lock_rc = 0;
  std::map<std::string, librados::bufferlist> values;
  int values_rc = 0;
};

int describe(HeaderRead &read, int rc, std::vector<guardian_watcher_t> &watchers, guardian_header_t &header) {
  if (rc < 0)
    return rc;
  if (read.watchers_rc < 0)
    return read.watchers_rc;
  // Absent is an answer; anything else that failed is not, although FAILOK let the operation go on.
  if (read.lock_rc < 0 && read.lock_rc != -ENODATA)
    return read.lock_rc;
  // A pool that has no omap holds no header that names another pool.
  if (read.values_rc < 0 && read.values_rc != -EOPNOTSUPP)
    return read.values_rc;

  watchers.reserve(read.watchers.size());
  for (const obj_watch_t &watch : read.watchers)
    watchers.push_back({watch.addr, watch.watcher_id, watch.cookie, watch.timeout_seconds});
  header.watchers = watchers.empty() ? nullptr : watchers.data();
  header.watchers_len = watchers.size();
  if (read.lock_rc >= 0 && read.lock.length() > 0) {
    header.lock = read.lock.c_str();
    header.lock_len = read.lock.length();
  }
  auto data_pool = read.values.find(DATA_POOL_KEY);
  if (data_pool != read.values.end() && data_pool->second.length() > 0) {
    header.data_pool = data_pool->second.c_str();
    header.data_pool_len = data_pool->second.length();
  }
  return 0;
}

void header_done(librados::completion_t completion, void *arg) {
  std::unique_ptr<HeaderRead> read(static_cast<HeaderRead *>(arg));
  int rc = rados_aio_get_return_value(completion);
  std::vector<guardian_watcher_t> watchers;
  guardian_header_t header{0, nullptr, 0, nullptr, 0, nullptr, 0};
  rc = guarded([&] { return describe(*read, rc, watchers, header); });
  if (rc < 0)
    header = {rc, nullptr, 0, nullptr, 0, nullptr, 0};
  read->callback(read->arg, &header);
}

struct Release {
  void operator()(librados::AioCompletion *completion) const { completion->release(); }
};

} // namespace

extern "C" int guardian_header_read(rados_ioctx_t io, const char *object, int with_data_pool,
                                    guardian_header_cb callback, void *arg) {
  return guarded([&] {
    auto read = std::make_unique<HeaderRead>();
    read->callback = callback;
    read->arg = arg;

    librados::ObjectReadOperation op;
    op.list_watchers(&read->watchers, &read->watchers_rc);
    op.getxattr(LOCK_XATTR, &read->lock, &read->lock_rc);
    op.set_op_flags2(librados::OP_FAILOK);
    if (with_data_pool) {
      op.omap_get_vals_by_keys({DATA_POOL_KEY}, &read->values, &read->values_rc);
      op.set_op_flags2(librados::OP_FAILOK);
    }

    // Our own reference to the completion goes as soon as it is submitted; librados keeps one until it has called.
    std::unique_ptr<librados::AioCompletion, Release> completion(
        librados::Rados::aio_create_completion(read.get(), header_done));
    const std::string name(object);
    librados::IoCtx pool;
    librados::IoCtx::from_rados_ioctx_t(io, pool);

    // From here on the callback may already have run and freed `read`; only a refusal leaves it with us. An exception
    // would leave that open, and either guess could free memory in use: it ends the process (noexcept).
    HeaderRead *submitted = read.release();
    auto submit = [&]() noexcept { return pool.aio_operate(name, completion.get(), &op, nullptr); };
    int rc = submit();
    if (rc < 0)
      delete submitted;
    return rc < 0 ? rc : 0;
  });
}

extern "C" int guardian_pg_of(rados_ioctx_t io, const char *object, uint32_t *pg) {
  return guarded([&] {
    librados::IoCtx pool;
    librados::IoCtx::from_rados_ioctx_t(io, pool);
    return pool.get_object_pg_hash_position2(object, pg);
  });
}
