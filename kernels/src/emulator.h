// The same primitives on a CPU: what each instruction means, and what breaks a kernel's promises.
//
// Every CUDA thread is a fiber. A fiber runs until an instruction that the whole warp or block executes
// together; there it waits for the others. In between, the order of warps and lanes is drawn from a
// seed, so a race shows up as another order. What is checked, beyond the result:
//
//   * global memory: each access lies within a registered buffer, is aligned, and may write there
//   * shared memory: within what the launch asked for, aligned, written before it is read
//   * who wrote it: a word is read by another thread only after a barrier that orders the two (of the
//     warp within a warp, of the block otherwise) and overwritten only after its readers are done; a
//     missing __syncwarp, which no schedule of a lockstep emulator would show, is a fault here
//   * asynchronous copies: data lands at the wait that covers it (late) or at once (early), and a word
//     with a copy in flight may be neither read nor written
//   * instructions of a whole warp: all 32 lanes at the same one
//   * progress: threads that wait for others that never come are a fault, not a test that hangs
//   * metadata: strictly increasing, as the ordered form of mma.sp demands
//
// and counted: MMAs, shared memory wavefronts (bank conflicts), copies, barriers. What is not modelled:
// timing, the weak memory order between blocks, and registers.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "layout.h"

#define EDGEKD_KERNEL static
#define EDGEKD_DEVICE inline
#define EDGEKD_UNROLL
#define __launch_bounds__(...)

namespace edgekd {

struct Counters {
  uint64_t mma_sparse, mma_dense, matrix_loads, matrix_wavefronts, shared_loads, shared_wavefronts,
      copies, block_barriers, global_stores, global_loads;
};

struct Buffer {
  const void* start;
  size_t bytes;
  bool writable;
};

class Emulator {
 public:
  static Emulator& here() {
    static thread_local Emulator emulator;
    return emulator;
  }

  // Runs every block of a launch; returns the first fault as a sentence, empty where there is none.
  // seed 0 is round robin; late: asynchronous copies land as late as they may.
  std::string launch(int blocks_x, int blocks_y, int threads, size_t shared_bytes, uint64_t seed,
                     bool late, std::vector<Buffer> buffers, std::function<void()> body) {
    body_ = std::move(body), buffers_ = std::move(buffers);
    late_ = late, random_ = seed, fault_.clear(), counters = {};
    shared_.resize(shared_bytes), words_.resize(shared_bytes / 4);
    fibers_.resize(threads);
    for (block_y = 0; block_y < blocks_y; ++block_y)
      for (block_x = 0; block_x < blocks_x; ++block_x)
        if (!run_block(threads)) return fault_;
    return "";
  }

  Counters counters = {};
  int thread = 0, block_x = 0, block_y = 0;

  // ---- global memory ---------------------------------------------------------------------------

  void check_global(const void* at, size_t bytes, bool write, size_t alignment) {
    const char* from = static_cast<const char*>(at);
    if (reinterpret_cast<uintptr_t>(at) % alignment) fault("misaligned global access");
    for (const Buffer& b : buffers_) {
      const char* start = static_cast<const char*>(b.start);
      if (from >= start && from + bytes <= start + b.bytes && (b.writable || !write)) return;
    }
    fault(write ? "global store out of bounds" : "global load out of bounds");
  }

  // ---- shared memory ---------------------------------------------------------------------------

  void read(void* to, uint32_t at, int bytes, bool by_warp) {
    check_shared(at, bytes);
    for (uint32_t w = at / 4; w < (at + bytes) / 4; ++w) check_read(words_[w], by_warp);
    std::memcpy(to, &shared_[at], bytes);
  }

  void write(uint32_t at, const void* from, int bytes) {
    check_shared(at, bytes);
    for (uint32_t w = at / 4; w < (at + bytes) / 4; ++w) {
      check_write(words_[w]);
      wrote(words_[w]);
    }
    std::memcpy(&shared_[at], from, bytes);
  }

  void copy(uint32_t to, const void* from) {
    check_shared(to, 16), check_global(from, 16, false, 16);
    ++counters.copies;
    for (uint32_t w = to / 4; w < to / 4 + 4; ++w) check_write(words_[w]), words_[w].in_flight = true;
    Copy copy = {to, {}};
    std::memcpy(copy.data, from, 16);
    if (!late_) std::memcpy(&shared_[to], copy.data, 16);
    fibers_[thread].open.push_back(copy);
  }

  void commit() {
    Fiber& fiber = fibers_[thread];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
  }

  void wait(size_t pending) {
    auto& groups = fibers_[thread].groups;
    while (groups.size() > pending) {
      for (const Copy& copy : groups.front()) {
        std::memcpy(&shared_[copy.to], copy.data, 16);
        for (uint32_t w = copy.to / 4; w < copy.to / 4 + 4; ++w)
          words_[w].in_flight = false, wrote(words_[w]);
      }
      groups.erase(groups.begin());
    }
  }

  // ---- instructions of a whole warp or block ---------------------------------------------------

  struct Warp {
    int arrived = 0;
    uint64_t generation = 0, epoch = 0;
    const char* doing = nullptr;
    uint32_t a[kLanes][4], b[kLanes][4], e[kLanes], address[kLanes], loaded[kLanes][4];
    int d[kLanes][4];
  };

  Warp& warp() { return warps_[thread / kLanes]; }
  int lane() const { return thread % kLanes; }

  template <class Execute>
  void together(const char* what, Execute execute) {
    Warp& w = warp();
    if (w.arrived == 0) w.doing = what;
    if (std::strcmp(w.doing, what)) fault("the lanes of a warp are at different instructions");
    const uint64_t generation = w.generation;
    ++moves_;
    if (++w.arrived == kLanes) {
      execute(w);
      w.arrived = 0, ++w.generation;
    } else {
      while (w.generation == generation) yield();
    }
  }

  void warp_barrier() {
    together("__syncwarp", [](Warp& w) { ++w.epoch; });
  }

  void barrier() {
    const uint64_t epoch = block_epoch_;
    ++moves_;
    if (++arrived_ == static_cast<int>(fibers_.size()))
      arrived_ = 0, ++block_epoch_, ++counters.block_barriers;
    else
      while (block_epoch_ == epoch) yield();
  }

  // A shared memory access is served 32 banks of 4 bytes at a time; equal words are served once.
  static int wavefronts(const uint32_t* address, int lanes, int bytes) {
    int most = 0;
    for (int bank = 0; bank < 32; ++bank) {
      std::vector<uint32_t> words;
      for (int l = 0; l < lanes; ++l)
        for (int i = 0; i < bytes; i += 4) {
          const uint32_t word = (address[l] + i) / 4;
          bool known = word % 32 != static_cast<uint32_t>(bank);
          for (uint32_t other : words) known = known || other == word;
          if (!known) words.push_back(word);
        }
      if (static_cast<int>(words.size()) > most) most = static_cast<int>(words.size());
    }
    return most;
  }

  // Bank conflicts of 16-byte loads that lanes make on their own: the i-th of each lane belong together.
  void count_load(uint32_t address) {
    auto& log = loads_[thread / kLanes];
    const size_t index = fibers_[thread].loads++;
    if (log.size() <= index) log.resize(index + 1);
    log[index].address[lane()] = address;
    if (++log[index].lanes < kLanes) return;
    ++counters.shared_loads;
    for (int quarter = 0; quarter < 4; ++quarter)
      counters.shared_wavefronts += wavefronts(log[index].address + 8 * quarter, 8, 16);
  }

  [[noreturn]] void fault(const char* what) {
    char text[200];
    std::snprintf(text, sizeof text, "block (%d, %d), thread %d: %s", block_x, block_y, thread, what);
    if (fault_.empty()) fault_ = text;
    for (;;) yield();
  }

 private:
  struct Copy {
    uint32_t to;
    uint8_t data[16];
  };
  struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    bool started = false, done = false;
    std::vector<uint8_t> stack;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    size_t loads = 0;
  };
  // Who last wrote a word and who has read it since. Epochs count barriers, so "no barrier since" is an
  // equality. `reader` is a thread, kNobody, kSeveral, or kFirstWarp - w for warp w as a whole.
  struct Word {
    bool written = false, in_flight = false;
    int writer = -1, reader = -1;
    uint64_t write_block = 0, write_warp = 0, read_block = 0, read_warp = 0;
  };
  struct Load {
    int lanes = 0;
    uint32_t address[kLanes];
  };
  static constexpr int kNobody = -1, kSeveral = -2, kFirstWarp = -3;  // readers that are no thread
  static constexpr size_t kStackBytes = 128 * 1024;

  void check_shared(uint32_t at, int bytes) {
    if (static_cast<size_t>(at) + bytes > shared_.size()) fault("shared memory out of bounds");
    if (at % bytes) fault("misaligned shared memory access");
  }

  // Whether a barrier lies between a thread's access, in the given epochs, and this thread's now.
  bool ordered(int other, uint64_t block_epoch, uint64_t warp_epoch) {
    return block_epoch != block_epoch_ ||
           (other / kLanes == thread / kLanes && warp_epoch != warp().epoch);
  }

  void check_read(Word& word, bool by_warp) {
    if (word.in_flight) fault("read of shared memory with a copy in flight");
    if (!word.written) fault("read of shared memory that nobody wrote");
    if ((by_warp || word.writer != thread) && !ordered(word.writer, word.write_block, word.write_warp))
      fault("read of another thread's word without a barrier in between");
    // The reads of a warp's instruction are all its lanes': by PTX's memory model it orders none of
    // them before another lane's later write. Only a barrier does.
    const int who = by_warp ? warp_reader() : thread;
    const bool alone = word.reader == kNobody || word.read_block != block_epoch_ || word.reader == who;
    word.reader = alone ? who : kSeveral;
    word.read_block = block_epoch_, word.read_warp = warp().epoch;
  }

  void check_write(Word& word) {
    if (word.in_flight) fault("write to shared memory with a copy in flight");
    if (word.written && word.writer != thread &&
        !ordered(word.writer, word.write_block, word.write_warp))
      fault("two threads write a word without a barrier in between");
    const bool mine = word.reader == kNobody || word.reader == thread;
    const int reader = word.reader <= kFirstWarp ? (kFirstWarp - word.reader) * kLanes
                       : word.reader == kSeveral ? -kLanes  // of no one warp
                                                 : word.reader;
    if (!mine && !ordered(reader, word.read_block, word.read_warp))
      fault("write to a word that others read without a barrier in between");
  }

  void wrote(Word& word) {
    word.written = true, word.writer = thread, word.reader = kNobody;
    word.write_block = block_epoch_, word.write_warp = warp().epoch;
  }
  int warp_reader() const { return kFirstWarp - thread / kLanes; }

  bool run_block(int threads) {
    std::memset(shared_.data(), 0xA5, shared_.size());
    words_.assign(words_.size(), Word());
    warps_.assign((threads + kLanes - 1) / kLanes, Warp());
    loads_.assign(warps_.size(), {});
    for (Fiber& f : fibers_) f.started = f.done = false, f.groups.clear(), f.open.clear(), f.loads = 0;
    arrived_ = 0;
    const int warps = static_cast<int>(warps_.size());
    std::vector<bool> stuck(warps);  // warps that got nowhere since any last did
    for (;;) {
      int running = 0;
      for (int turn = 0; turn < warps; ++turn) {
        // A warp may run ahead of the others for a while, and a lane of its warp.
        const int w = random_ ? static_cast<int>(draw() % warps) : turn;
        const int passes = random_ ? 1 + static_cast<int>(draw() % 64) : 1;
        const int shift = random_ ? static_cast<int>(draw() % kLanes) : 0;
        const uint64_t before = moves_;
        for (int pass = 0; pass < passes; ++pass)
          for (int l = 0; l < kLanes; ++l) {
            const int t = w * kLanes + (l + shift) % kLanes;
            if (t < threads && !fibers_[t].done) resume(t);
            if (!fault_.empty()) return false;
          }
        if (moves_ == before)
          stuck[w] = true;
        else
          stuck.assign(warps, false);
      }
      for (const Fiber& f : fibers_) running += !f.done;
      if (running == 0) return true;
      if (std::find(stuck.begin(), stuck.end(), false) == stuck.end()) return deadlock(running);
    }
  }

  bool deadlock(int waiting) {
    char text[200];
    std::snprintf(text, sizeof text,
                  "block (%d, %d): deadlock, %d of %zu threads wait for others that never come", block_x,
                  block_y, waiting, fibers_.size());
    fault_ = text;
    return false;
  }

  uint64_t draw() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    return random_;
  }

  static void begin() {
    Emulator& e = here();
    e.body_();
    e.fibers_[e.thread].done = true, ++e.moves_;
    for (;;) e.yield();
  }
  void yield() {
    if (!_setjmp(fibers_[thread].resume)) _longjmp(scheduler_, 1);
  }
  void resume(int t) {
    thread = t;
    if (_setjmp(scheduler_)) return;
    Fiber& f = fibers_[t];
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    f.stack.resize(kStackBytes);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.data(), f.start.uc_stack.ss_size = f.stack.size();
    f.start.uc_link = nullptr;
    makecontext(&f.start, begin, 0);
    setcontext(&f.start);
  }

  std::function<void()> body_;
  std::vector<Buffer> buffers_;
  std::vector<uint8_t> shared_;
  std::vector<Word> words_;
  std::vector<Warp> warps_;
  std::vector<std::vector<Load>> loads_;
  std::vector<Fiber> fibers_;
  std::string fault_;
  jmp_buf scheduler_;
  uint64_t random_ = 0, block_epoch_ = 1;
  uint64_t moves_ = 0;  // arrivals and ends: what a fiber does once it no longer waits
  int arrived_ = 0;
  bool late_ = false;
};

// ---- the names kernels use -----------------------------------------------------------------------

EDGEKD_DEVICE int thread_index() { return Emulator::here().thread; }
EDGEKD_DEVICE int block_x() { return Emulator::here().block_x; }
EDGEKD_DEVICE int block_y() { return Emulator::here().block_y; }
EDGEKD_DEVICE uint32_t shared_base() { return 0; }
EDGEKD_DEVICE void barrier() { Emulator::here().barrier(); }
EDGEKD_DEVICE void warp_barrier() { Emulator::here().warp_barrier(); }
EDGEKD_DEVICE void copy_async(uint32_t shared, const void* global) {
  Emulator::here().copy(shared, global);
}
EDGEKD_DEVICE void commit_copies() { Emulator::here().commit(); }
template <int pending>
EDGEKD_DEVICE void wait_copies() {
  Emulator::here().wait(pending);
}

EDGEKD_DEVICE void load_matrices(uint32_t (&d)[4], uint32_t shared) {
  Emulator& e = Emulator::here();
  e.warp().address[e.lane()] = shared;
  e.together("ldmatrix", [&](Emulator::Warp& w) {
    ++e.counters.matrix_loads;
    for (int i = 0; i < 4; ++i) {
      e.counters.matrix_wavefronts += Emulator::wavefronts(w.address + 8 * i, 8, 16);
      for (int row = 0; row < 8; ++row) {
        uint32_t words[4];
        e.read(words, w.address[8 * i + row], 16, true);
        for (int t = 0; t < 4; ++t) w.loaded[4 * row + t][i] = words[t];
      }
    }
  });
  std::memcpy(d, e.warp().loaded[e.lane()], sizeof d);
}

EDGEKD_DEVICE void load_shared(uint32_t (&d)[4], uint32_t shared) {
  Emulator::here().count_load(shared);
  Emulator::here().read(d, shared, 16, false);
}
EDGEKD_DEVICE void store_shared(uint32_t shared, const int (&s)[4]) {
  Emulator::here().write(shared, s, 16);
}
EDGEKD_DEVICE void load_weights(uint32_t (&d)[4], const void* global) {
  Emulator::here().check_global(global, 16, false, 16);
  ++Emulator::here().counters.global_loads;
  std::memcpy(d, global, sizeof d);
}
EDGEKD_DEVICE void load_global(uint32_t (&d)[4], const void* global) { load_weights(d, global); }
EDGEKD_DEVICE void load_floats(float (&d)[4], const float* global) {
  Emulator::here().check_global(global, 16, false, 16);
  std::memcpy(d, global, sizeof d);
}
EDGEKD_DEVICE float load_float(const float* global) {
  Emulator::here().check_global(global, 4, false, 4);
  return *global;
}
template <int words>
EDGEKD_DEVICE void store_global(void* global, const uint32_t (&s)[words]) {
  Emulator::here().check_global(global, sizeof s, true, sizeof s);
  ++Emulator::here().counters.global_stores;
  std::memcpy(global, s, sizeof s);
}

// What mma.sp.m16n8k64 computes, from the maps of layout.h alone.
EDGEKD_DEVICE void execute_sparse(Emulator& e, Emulator::Warp& w) {
  int8_t stored[kTileRows][32], tokens[kSlab][kTileTokens];
  uint32_t meta[kTileRows][2];
  for (int l = 0; l < kLanes; ++l) {
    meta[metadata(l).row][metadata(l).column] = w.e[l];
    for (int reg = 0; reg < 4; ++reg)
      for (int byte = 0; byte < 4; ++byte) {
        const Place a = operand_a(l, reg, byte), b = operand_b(l, reg, byte);
        stored[a.row][a.column] = static_cast<int8_t>(w.a[l][reg] >> (8 * byte));
        tokens[b.row][b.column] = static_cast<int8_t>(w.b[l][reg] >> (8 * byte));
      }
  }
  for (int l = 0; l < kLanes; ++l)
    for (int reg = 0; reg < 4; ++reg) {
      const Place c = accumulator(l, reg);
      uint32_t sum = static_cast<uint32_t>(w.d[l][reg]);
      for (int group = 0; group < 16; ++group) {
        const uint32_t nibble = meta[c.row][group / 8] >> (4 * (group % 8)) & 15;
        if ((nibble & 3) >= nibble >> 2) e.fault("metadata of a group of four does not increase");
        for (int i = 0; i < 2; ++i)
          sum += static_cast<uint32_t>(stored[c.row][2 * group + i] *
                                       tokens[4 * group + (nibble >> (2 * i) & 3)][c.column]);
      }
      w.d[l][reg] = static_cast<int>(sum);
    }
  ++e.counters.mma_sparse;
}

EDGEKD_DEVICE void mma_sparse(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                              uint32_t metadata) {
  Emulator& e = Emulator::here();
  Emulator::Warp& w = e.warp();
  const int l = e.lane();
  std::memcpy(w.a[l], a, 16), std::memcpy(w.b[l], b, 16), std::memcpy(w.d[l], d, 16);
  w.e[l] = metadata;
  e.together("mma.sp", [&](Emulator::Warp& all) { execute_sparse(e, all); });
  std::memcpy(d, w.d[l], 16);
}

EDGEKD_DEVICE void execute_dense(Emulator& e, Emulator::Warp& w) {
  int8_t features[kTileRows][32], tokens[32][kTileTokens];
  for (int l = 0; l < kLanes; ++l)
    for (int reg = 0; reg < 4; ++reg)
      for (int byte = 0; byte < 4; ++byte) {
        const Place a = operand_a(l, reg, byte);
        features[a.row][a.column] = static_cast<int8_t>(w.a[l][reg] >> (8 * byte));
        if (reg > 1) continue;
        const Place b = operand_b(l, reg, byte);
        tokens[b.row][b.column] = static_cast<int8_t>(w.b[l][reg] >> (8 * byte));
      }
  for (int l = 0; l < kLanes; ++l)
    for (int reg = 0; reg < 4; ++reg) {
      const Place c = accumulator(l, reg);
      uint32_t sum = static_cast<uint32_t>(w.d[l][reg]);
      for (int k = 0; k < 32; ++k)
        sum += static_cast<uint32_t>(features[c.row][k] * tokens[k][c.column]);
      w.d[l][reg] = static_cast<int>(sum);
    }
  ++e.counters.mma_dense;
}

EDGEKD_DEVICE void mma_dense(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Emulator& e = Emulator::here();
  Emulator::Warp& w = e.warp();
  const int l = e.lane();
  std::memcpy(w.a[l], a, 16), std::memcpy(w.d[l], d, 16), w.b[l][0] = b0, w.b[l][1] = b1;
  e.together("mma", [&](Emulator::Warp& all) { execute_dense(e, all); });
  std::memcpy(d, w.d[l], 16);
}

EDGEKD_DEVICE float to_float(int a) { return static_cast<float>(a); }
EDGEKD_DEVICE float add(float a, float b) { return a + b; }
EDGEKD_DEVICE float multiply(float a, float b) { return a * b; }
EDGEKD_DEVICE float multiply_add(float a, float b, float c) { return std::fmaf(a, b, c); }
EDGEKD_DEVICE float divide(float a, float b) { return a / b; }
EDGEKD_DEVICE float absolute(float a) { return std::fabs(a); }
EDGEKD_DEVICE float minimum(float a, float b) { return std::fminf(a, b); }
EDGEKD_DEVICE float maximum(float a, float b) { return std::fmaxf(a, b); }
EDGEKD_DEVICE int round_to_int(float a) {
  if (std::isnan(a)) return 0;
  return a >= 0x1p31f ? INT32_MAX : a < -0x1p31f ? INT32_MIN : static_cast<int>(std::lrintf(a));
}
EDGEKD_DEVICE uint32_t pack_saturated(int a, int b, int c, int d) {
  uint32_t packed = 0;
  for (const int each : {d, c, b, a})
    packed = packed << 8 | static_cast<uint8_t>(each < -128 ? -128 : each > 127 ? 127 : each);
  return packed;
}
EDGEKD_DEVICE uint32_t half_bits(float a) {
  const _Float16 h = static_cast<_Float16>(a);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
EDGEKD_DEVICE float from_half_bits(uint32_t a) {
  const uint16_t bits = static_cast<uint16_t>(a);
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}

}  // namespace edgekd
