// How chains run: one executable graph for many of the same launches, in which only what has
// changed is changed. See chain.h.
#include "mlx-sys/src/chain.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "mlx-sys/src/pinned.h"
#include "mlx/fast_primitives.h"

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace offshoot {

namespace {

// Executable graphs that are kept.
constexpr size_t MAX_EXECUTABLES = 24;

thread_local std::unordered_map<const mx::Primitive*, Form> forms;

uint64_t address(const array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return buffer ? reinterpret_cast<uint64_t>(buffer->data) + a.offset() : 0;
}

// A graph of CUDA's that runs chains of so many launches.
class Executable {
 public:
  Executable(SharedChain chain, std::vector<uint64_t>&& words)
      : Executable(chain->launches.size()) {  // so that what throws below is taken back
    chain_ = std::move(chain);
    words_ = std::move(words);
    bool overlaps = Program::waits() && driver().add_edges;
    check(driver().new_graph(&graph_, 0), "no graph");
    std::vector<void*> pointers;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      auto told = chain_->told(i, words_, pointers);
      bool follows = i > 0 && !overlaps;
      check(driver().add_kernel(&nodes_[i], graph_, follows ? &nodes_[i - 1] : nullptr, follows,
                                &told),
            "a launch does not join others");
    }
    // A launch's blocks may come when all of the one before have begun: each waits until that one
    // has ended, at its begin or when it has read what comes from outside.
    constexpr KernelEdge overlapping{1, 0, 1, {}};
    std::vector<KernelEdge> edges(overlaps ? nodes_.size() - 1 : 0, overlapping);
    if (!edges.empty()) {
      check(driver().add_edges(graph_, &nodes_[0], &nodes_[1], edges.data(), edges.size()),
            "launches do not follow each other");
    }
    check(driver().instantiate(&executable_, graph_, 0), "launches cannot be joined");
  }

  ~Executable() {
    if (executable_) driver().drop_executable(executable_);
    if (graph_) driver().drop_graph(graph_);
  }

  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  // 0 of one that a failure has left half changed.
  size_t size() const { return chain_ ? nodes_.size() : 0; }

  bool runs(const SharedChain& chain) const {
    return chain_ && (chain == chain_ || chain->launches == chain_->launches);
  }

  // Makes it run another chain of its size.
  void change(SharedChain chain, std::vector<uint64_t>&& words) {
    auto old = std::exchange(chain_, nullptr);
    std::vector<void*> pointers;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      auto begin = chain->launches[i].word, old_begin = old->launches[i].word;
      auto n = chain->end_word(i) - begin;
      if (chain->launches[i].node == old->launches[i].node &&
          n == old->end_word(i) - old_begin &&
          std::equal(&words[begin], &words[begin] + n, &words_[old_begin])) {
        continue;
      }
      auto told = chain->told(i, words, pointers);
      check(driver().change_kernel(executable_, nodes_[i], &told), "a launch cannot be changed");
    }
    chain_ = std::move(chain);
    words_ = std::move(words);
  }

  void launch(void* stream) { check(driver().launch(executable_, stream), "no launch"); }

  uint64_t last_use = 0;

 private:
  explicit Executable(size_t n) : nodes_(n) {}

  std::vector<void*> nodes_;
  SharedChain chain_;
  std::vector<uint64_t> words_;
  void* graph_ = nullptr;
  void* executable_ = nullptr;
};

// Those of the thread that owns the device.
class Executables {
 public:
  Executable& of(const SharedChain& chain, std::vector<uint64_t>&& words) {
    Executable* oldest = nullptr;
    for (auto& one : kept_) {
      if (one->runs(chain)) return changed(*one, chain, std::move(words));
      bool is_of_size = one->size() == chain->launches.size();
      if (is_of_size && (!oldest || one->last_use < oldest->last_use)) oldest = one.get();
    }
    if (kept_.size() == MAX_EXECUTABLES) {
      if (oldest) return changed(*oldest, chain, std::move(words));
      auto is_older = [](auto& a, auto& b) { return a->last_use < b->last_use; };
      kept_.erase(std::min_element(kept_.begin(), kept_.end(), is_older));
    }
    kept_.push_back(std::make_unique<Executable>(chain, std::move(words)));
    kept_.back()->last_use = ++now_;
    return *kept_.back();
  }

 private:
  Executable& changed(Executable& one, const SharedChain& chain, std::vector<uint64_t>&& words) {
    one.change(chain, std::move(words));
    one.last_use = ++now_;
    return one;
  }

  std::vector<std::unique_ptr<Executable>> kept_;
  uint64_t now_ = 0;
};

#ifdef __linux__

// MLX's queue of a stream (mlx/backend/cuda/device.h), as far as it is used here.
struct CommandEncoder {
  void* device;
  void* stream;
};

// Hands MLX's launches so far to the stream, and gives the stream.
void* settled_stream(mx::Stream stream) {
  static auto get = reinterpret_cast<CommandEncoder* (*)(mx::Stream)>(
      dlsym(RTLD_DEFAULT, "_ZN3mlx4core2cu19get_command_encoderENS0_6StreamE"));
  static auto commit = reinterpret_cast<void (*)(CommandEncoder*)>(
      dlsym(RTLD_DEFAULT, "_ZN3mlx4core2cu14CommandEncoder6commitEv"));
  if (!get || !commit) throw std::runtime_error("this MLX has other names for its streams");
  auto* encoder = get(stream);
  commit(encoder);
  return encoder->stream;
}

#else

void* settled_stream(mx::Stream) { return nullptr; }

#endif

// The inputs are the chain's, then an array for the memory of each output, then one for all that is
// in between.
class Joined : public mx::Primitive {
 public:
  Joined(mx::Stream stream, SharedChain chain) : Primitive(stream), chain_(std::move(chain)) {}

  void eval_cpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("launches of CUDA's were asked to run on the CPU");
  }

  void eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    for (size_t k = 0; k < outputs.size(); ++k) {
      outputs[k].copy_shared_buffer(inputs[chain_->n_inputs + k]);
    }
    thread_local Executables executables;
    auto& executable = executables.of(chain_, chain_->closed(inputs, outputs));
    executable.launch(settled_stream(stream()));
  }

  const char* name() const override { return "Joined"; }

 private:
  SharedChain chain_;
};

// Arrays whose memory nobody has written: the outputs of a kernel that does nothing.
std::vector<array> unwritten(std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& dtypes) {
  thread_local std::unordered_map<size_t, DeviceKernel> kernels;
  auto place = kernels.find(shapes.size());
  if (place == kernels.end()) {
    std::vector<std::string> names;
    for (size_t i = 0; i < shapes.size(); ++i) names.push_back("y" + std::to_string(i) + "_");
    auto name = "offshoot_unwritten_" + std::to_string(shapes.size());
    auto call = mx::fast::cuda_kernel(name, {}, names, ";", "", true, 0);
    place = kernels.emplace(shapes.size(), DeviceKernel{std::move(call), -1, {}}).first;
  }
  return launched(place->second, {}, std::move(shapes), dtypes, {1, 1, 1}, {1, 1, 1}, {});
}

// What lies between the launches of a chain, of whichever: they run one after the other. Those that
// run hold it.
array between(size_t n_bytes) {
  thread_local std::optional<array> kept;
  if (!kept || kept->nbytes() < n_bytes) {
    constexpr size_t step_bytes = 4 << 20;
    auto n = (n_bytes + step_bytes) / step_bytes * step_bytes;
    kept.reset();
    kept = unwritten({{static_cast<int>(n / 4)}}, {mx::uint32}).at(0);
    kept->eval();
  }
  return *kept;
}

}  // namespace

const Form* form_of(const array& a) {
  auto form = forms.find(&a.primitive());
  bool is_known = form != forms.end() && form->second.node.lock() == a.primitive_ptr();
  return is_known ? &form->second : nullptr;
}

void note_launch(const Node& node, int n_late) {
  if (!has_cuda() || std::string_view(node->name()) != "CustomKernel") return;
  constexpr size_t many = 4096;
  if (forms.size() >= many) {
    std::erase_if(forms, [](const auto& entry) { return entry.second.node.expired(); });
  }
  const auto& kernel = static_cast<const mx::fast::CustomKernel&>(*node);
  auto [name, text, grid, group, states, copies, init, scalars, is_made, shared_bytes, options] =
      kernel.state();
  auto* program = Program::begin(name, text, /*waits=*/n_late >= 0);
  if (!program || init || !scalars.empty() || is_made) return;
  Form form{node, program, {}, {}, shared_bytes, std::move(states), n_late};
  auto set = [&](int i, int threads, int of_group) {
    form.group[i] = std::min(threads, of_group);
    form.grid[i] = (threads + of_group - 1) / of_group;
  };
  set(0, std::get<0>(grid), std::get<0>(group));
  set(1, std::get<1>(grid), std::get<1>(group));
  set(2, std::get<2>(grid), std::get<2>(group));
  forms.insert_or_assign(node.get(), std::move(form));
}

std::vector<uint64_t> Chain::closed(const std::vector<array>& inputs,
                                    const std::vector<array>& outputs) const {
  auto list = words;
  auto begin = address(inputs.back());
  for (const auto& [word, from] : open) {
    switch (from.of) {
      case Address::Of::between: list[word] = begin + from.at; break;
      case Address::Of::input: list[word] = address(inputs[from.at]); break;
      case Address::Of::output: list[word] = address(outputs[from.at]); break;
    }
  }
  return list;
}

KernelNode Chain::told(size_t i, std::vector<uint64_t>& list,
                       std::vector<void*>& pointers) const {
  const auto& launch = launches[i];
  auto end = i + 1 < launches.size() ? launches[i + 1].argument : arguments.size();
  pointers.clear();
  for (auto k = launch.argument; k < end; ++k) pointers.push_back(&list[arguments[k]]);
  const auto& form = *launch.form;
  KernelNode node{};
  node.function = form.program->function(form.shared_bytes);
  std::copy(form.grid.begin(), form.grid.end(), node.grid);
  std::copy(form.group.begin(), form.group.end(), node.group);
  node.shared_bytes = form.shared_bytes;
  node.arguments = pointers.data();
  return node;
}

std::vector<array> made_of(mx::Stream stream, const SharedChain& chain, std::vector<array> inputs,
                           std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& dtypes) {
  for (auto& room : unwritten(shapes, dtypes)) inputs.push_back(std::move(room));
  inputs.push_back(between(chain->between_bytes));
  auto node = std::make_shared<Joined>(stream, chain);
  return array::make_arrays(std::move(shapes), dtypes, std::move(node), inputs);
}

}  // namespace offshoot
