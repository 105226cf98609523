// A plain loop over the headers of a pool's images: `list_watchers` of each, so many under way at once. Prints one line of JSON.
//   watchers POOL ROUNDS
#include <rados/librados.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

static const size_t WINDOW = 512;
static const size_t PAGE = 1024;

static void check(int result, const char *what) {
  if (result < 0) {
    fprintf(stderr, "%s: %d\n", what, result);
    exit(1);
  }
}

struct Asked {
  std::unique_ptr<librados::AioCompletion> done{librados::Rados::aio_create_completion()};
  std::list<obj_watch_t> watchers;
  int result = 0;
};

static size_t finish(std::deque<std::unique_ptr<Asked>> &asked) {
  asked.front()->done->wait_for_complete();
  check(asked.front()->done->get_return_value(), "list_watchers");
  size_t found = asked.front()->watchers.size();
  asked.pop_front();
  return found;
}

static std::vector<std::string> headers(librados::IoCtx &pool) {
  std::vector<std::string> found;
  std::string after = "id_";
  for (bool more = true; more;) {
    std::map<std::string, librados::bufferlist> page;
    librados::ObjectReadOperation read;
    int result = 0;
    read.omap_get_vals2(after, "id_", PAGE, &page, &more, &result);
    librados::bufferlist none;
    check(pool.operate("rbd_directory", &read, &none), "rbd_directory");
    if (page.empty()) break;
    for (auto &[key, value] : page) found.push_back("rbd_header." + key.substr(3));
    after = page.rbegin()->first;
  }
  return found;
}

int main(int, char **words) {
  librados::Rados cluster;
  check(cluster.init("admin"), "init");
  check(cluster.conf_read_file(nullptr), "configuration");
  check(cluster.conf_parse_env("CEPH_ARGS"), "CEPH_ARGS");
  check(cluster.connect(), "connect");
  librados::IoCtx pool;
  check(cluster.ioctx_create(words[1], pool), "pool");
  std::vector<double> seconds;
  size_t images = 0, watchers = 0;
  for (int round = 0; round < atoi(words[2]); round++) {
    auto began = std::chrono::steady_clock::now();
    std::deque<std::unique_ptr<Asked>> asked;
    images = watchers = 0;
    for (auto &header : headers(pool)) {
      if (asked.size() == WINDOW) watchers += finish(asked);
      asked.push_back(std::make_unique<Asked>());
      librados::ObjectReadOperation read;
      read.list_watchers(&asked.back()->watchers, &asked.back()->result);
      check(pool.aio_operate(header, asked.back()->done.get(), &read, nullptr), "aio_operate");
      images++;
    }
    while (!asked.empty()) watchers += finish(asked);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }
  std::sort(seconds.begin(), seconds.end());
  printf("{\"images\": %zu, \"watchers\": %zu, \"seconds\": %f}\n", images, watchers, seconds[seconds.size() / 2]);
}
