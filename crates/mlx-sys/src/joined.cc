// From nodes of MLX's graph to chains of launches. See joined.h.
#include "mlx-sys/src/joined.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "mlx-sys/src/chain.h"
#include "mlx-sys/src/pinned.h"
#include "mlx/primitives.h"

namespace offshoot {

namespace {

// Fewer launches in a row are not worth it.
constexpr int FEWEST = 16;
// Memory that a chain may need for what is in between.
constexpr size_t MAX_BETWEEN_BYTES = 256 << 20;
constexpr size_t ALIGN_BYTES = 256;
// As MLX passes shapes and strides.
constexpr size_t MAX_AXES = 10;

// Whether it is computed, or being computed.
bool is_there(const array& a) {
  return !a.has_primitive() || a.status() != array::Status::unscheduled;
}

// MLX's own results may lie with gaps; of what is not computed yet nobody knows.
array packed(const array& a, mx::Stream stream) {
  bool is_packed = is_there(a) ? a.flags().row_contiguous : form_of(a) != nullptr;
  return is_packed ? a : mx::contiguous(a, false, stream);
}

// One of a node's results.
struct Result {
  int node, position;
};

struct Visited {
  enum class Kind {
    // There already.
    leaf,
    // Of a kernel of ours.
    launch,
    // Of a launch's result, in the same memory.
    view,
    other
  };
  const array* one;  // of its results
  Kind kind;
  const Form* form;
  // Launches and views of a segment need nothing but what is there before it or made in it; what
  // they read early is there before. Of others, the first segment that may need them.
  size_t segment;
  std::vector<Result> inputs;
  // Which results something outside of its segment needs.
  uint64_t wanted = 0;
  // What stands for its results in the new graph; empty: they themselves.
  std::vector<array> made;

  bool is_in_segment() const { return kind == Kind::launch || kind == Kind::view; }
  size_t n_results() const { return one->siblings().size() + 1; }
  const array& result(int position) const {
    int own = one->sibling_position();
    return position == own ? *one : one->siblings()[position < own ? position : position - 1];
  }
};

// What it shows: the result of a launch, if it is in a segment.
Result root_of(const std::vector<Visited>& nodes, Result r) {
  while (nodes[r.node].kind == Visited::Kind::view) r = nodes[r.node].inputs[0];
  return r;
}

// A graph on the way to a new one.
class Joining {
 public:
  // From `sources` on, which are taken as they are.
  Joining(const std::vector<array>& outputs, const std::vector<array>& sources)
      : stream_(mx::default_stream(mx::Device::gpu)) {
    for (const auto& source : sources) {
      if (known_.try_emplace(id(source), nodes_.size()).second) nodes_.push_back(leaf(source));
    }
    for (const auto& output : outputs) outputs_.push_back(visit(output));
  }

  // All of it as one chain. Null if there is something else than launches.
  std::shared_ptr<Recording> record(const std::vector<array>& outputs,
                                    const std::vector<array>& sources);

  std::vector<array> run(const std::vector<array>& outputs) {
    std::vector<std::vector<int>> launches, rest;
    for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
      auto& of = nodes_[i].is_in_segment() ? launches : rest;
      if (of.size() <= nodes_[i].segment) of.resize(nodes_[i].segment + 1);
      of[nodes_[i].segment].push_back(i);
    }
    auto is_launch = [&](int i) { return nodes_[i].kind == Visited::Kind::launch; };
    auto is_long = [&](const auto& list) {
      return std::count_if(list.begin(), list.end(), is_launch) >= FEWEST;
    };
    if (std::none_of(launches.begin(), launches.end(), is_long)) return outputs;
    mark_wanted();
    for (size_t s = 0; s < std::max(launches.size(), rest.size()); ++s) {
      if (s < rest.size()) {
        for (int i : rest[s]) remake(i);
      }
      if (s < launches.size() && !(is_long(launches[s]) && join(launches[s]))) {
        for (int i : launches[s]) remake(i);
      }
    }
    std::vector<array> made;
    for (auto output : outputs_) made.push_back(in_new_graph(output));
    return made;
  }

 private:
  static uintptr_t id(const array& a) {
    return a.sibling_position() == 0 ? a.id() : a.siblings()[0].id();
  }

  static Visited leaf(const array& a) { return {&a, Visited::Kind::leaf, nullptr, 0, {}}; }

  // Its node, after all that it needs.
  Result visit(const array& root) {
    std::vector<std::pair<const array*, size_t>> stack{{&root, 0}};
    while (!stack.empty()) {
      auto& [a, next] = stack.back();
      bool is_leaf = is_there(*a);
      if (known_.contains(id(*a))) {
        stack.pop_back();
      } else if (!is_leaf && next < a->inputs().size()) {
        const auto* input = &a->inputs()[next++];
        if (!known_.contains(id(*input))) stack.push_back({input, 0});
      } else {
        known_.emplace(id(*a), nodes_.size());
        nodes_.push_back(is_leaf ? leaf(*a) : visited(*a));
        stack.pop_back();
      }
    }
    return found(root);
  }

  Result found(const array& a) const {
    return {known_.at(id(a)), static_cast<int>(a.sibling_position())};
  }

  Visited visited(const array& a) const {
    using Kind = Visited::Kind;
    Visited node{&a, Kind::other, nullptr, 0, {}};
    for (const auto& input : a.inputs()) node.inputs.push_back(found(input));
    const auto* form = form_of(a);
    if (form && a.primitive().stream() == stream_ && node.n_results() <= 64 &&
        is_ready(node, *form)) {
      node.kind = Kind::launch;
      node.form = form;
    } else if (is_view(a)) {
      node.kind = Kind::view;
    }
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const auto& from = nodes_[node.inputs[k].node];
      bool is_early = node.kind == Kind::launch && form->reads_early(k);
      bool comes_before = from.is_in_segment() && (!node.is_in_segment() || is_early);
      node.segment = std::max(node.segment, from.segment + (comes_before ? 1 : 0));
    }
    return node;
  }

  // Whether a launch takes its inputs as they are.
  bool is_ready(const Visited& node, const Form& form) const {
    auto is_packed = [&](Result input) {
      const auto& from = nodes_[input.node];
      return from.kind != Visited::Kind::leaf || from.result(input.position).flags().row_contiguous;
    };
    return std::all_of(node.inputs.begin(), node.inputs.end(), is_packed) &&
           form.program->is_made();
  }

  bool is_view(const array& a) const {
    static constexpr std::string_view names[] = {"Reshape", "ExpandDims", "Squeeze", "Flatten",
                                                 "Unflatten"};
    return std::count(std::begin(names), std::end(names), a.primitive().name()) &&
           nodes_[found(a.inputs().at(0)).node].is_in_segment();
  }

  void mark_wanted() {
    auto want = [&](Result r) {
      auto from = root_of(nodes_, r);
      nodes_[from.node].wanted |= uint64_t(1) << from.position;
    };
    for (auto output : outputs_) want(output);
    for (const auto& node : nodes_) {
      for (auto input : node.inputs) {
        const auto& from = nodes_[input.node];
        bool stays = node.is_in_segment() && from.segment == node.segment;
        if (from.is_in_segment() && !stays) want(input);
      }
    }
  }

  array in_new_graph(Result r) {
    auto& node = nodes_[r.node];
    if (node.kind == Visited::Kind::view && node.made.empty()) remake(r.node);
    return node.made.empty() ? node.result(r.position) : node.made[r.position];
  }

  // The node over what stands for its inputs in the new graph.
  void remake(int i) {
    bool is_new = false;
    std::vector<array> inputs;
    for (auto input : nodes_[i].inputs) {
      inputs.push_back(in_new_graph(input));
      is_new |= inputs.back().id() != nodes_[input.node].result(input.position).id();
    }
    auto& node = nodes_[i];
    if (!is_new || !node.made.empty()) return;
    std::vector<Result> results;
    for (int k = 0; k < static_cast<int>(node.n_results()); ++k) results.push_back({i, k});
    auto [shapes, dtypes] = sizes(results);
    node.made =
        array::make_arrays(std::move(shapes), dtypes, node.one->primitive_ptr(), std::move(inputs));
  }

  std::pair<std::vector<mx::Shape>, std::vector<mx::Dtype>> sizes(
      const std::vector<Result>& results) const {
    std::pair<std::vector<mx::Shape>, std::vector<mx::Dtype>> both;
    for (auto r : results) {
      both.first.push_back(nodes_[r.node].result(r.position).shape());
      both.second.push_back(nodes_[r.node].result(r.position).dtype());
    }
    return both;
  }

  // The launches of a segment as one node. False if they would need too much memory.
  bool join(const std::vector<int>& segment);

  mx::Stream stream_;
  std::vector<Visited> nodes_;
  std::unordered_map<uintptr_t, int> known_;
  std::vector<Result> outputs_;
};

// Memory for results that are dead before others begin: pieces of the same size by turns.
class Pieces {
 public:
  size_t take(size_t n_bytes) {
    auto& free = free_[n_bytes];
    if (free.empty()) return std::exchange(end_, end_ + n_bytes);
    auto at = free.back();
    free.pop_back();
    return at;
  }
  void give_back(size_t at, size_t n_bytes) { free_[n_bytes].push_back(at); }
  size_t end() const { return end_; }

 private:
  std::unordered_map<size_t, std::vector<size_t>> free_;
  size_t end_ = 0;
};

// A segment on the way to a chain.
class Linking {
 public:
  Linking(std::vector<Visited>& nodes, const std::vector<int>& segment)
      : nodes_(nodes), segment_(segment) {
    for (int i : segment) {
      if (nodes[i].kind != Visited::Kind::launch) continue;
      for (auto input : nodes[i].inputs) last_use_[key(root(input))] = i;
    }
  }

  void run() {
    for (int i : segment_) {
      if (nodes_[i].kind == Visited::Kind::launch) add(i);
    }
    chain.between_bytes = pieces_.end();
    chain.n_inputs = inputs.size();
  }

  Chain chain;
  // From outside, and what goes there.
  std::vector<Result> inputs, outputs;

 private:
  static uint64_t key(Result r) { return uint64_t(r.node) << 6 | r.position; }

  bool is_inside(Result r) const {
    const auto& node = nodes_[r.node];
    return node.is_in_segment() && node.segment == nodes_[segment_[0]].segment;
  }

  // The launch's result that an input shows, if the launch is one of the segment: views are in that
  // of what they show.
  Result root(Result r) const { return is_inside(r) ? root_of(nodes_, r) : r; }

  void add(int i) {
    const auto& node = nodes_[i];
    auto n_words = chain.words.size(), n_arguments = chain.arguments.size();
    chain.launches.push_back({node.one->primitive_ptr(), node.form, n_words, n_arguments});
    for (size_t k = 0; k < node.inputs.size(); ++k) add_input(node.inputs[k], node.form->states[k]);
    for (int k = 0; k < static_cast<int>(node.n_results()); ++k) add_output({i, k});
    for (auto input : node.inputs) end_use(root(input), i);
    for (int k = 0; k < static_cast<int>(node.n_results()); ++k) {
      if (!last_use_.contains(key({i, k}))) end_use({i, k}, -1);
    }
  }

  void add_input(Result input, const std::tuple<bool, bool, bool>& states) {
    const auto& a = nodes_[input.node].result(input.position);
    auto from = root(input);
    auto place = places_.find(key(from));
    if (place == places_.end()) {
      place = places_.emplace(key(from), Address{Address::Of::input, inputs.size()}).first;
      inputs.push_back(from);
    }
    add_address(place->second);
    if (a.ndim() == 0) return;
    if (std::get<0>(states)) add_list<int32_t>(a.shape());
    if (std::get<1>(states)) add_list<int64_t>(a.strides());
    if (std::get<2>(states)) add_list<int32_t>(std::array{static_cast<int32_t>(a.ndim())});
  }

  void add_output(Result r) {
    const auto& node = nodes_[r.node];
    Address place{Address::Of::output, outputs.size()};
    if (node.wanted >> r.position & 1) {
      outputs.push_back(r);
    } else {
      place = {Address::Of::between, pieces_.take(n_bytes(r))};
    }
    places_.insert_or_assign(key(r), place);
    add_address(place);
  }

  void add_address(Address address) {
    chain.arguments.push_back(chain.words.size());
    chain.open.emplace_back(chain.words.size(), address);
    chain.words.push_back(0);
  }

  template <typename T>
  void add_list(const auto& list) {
    if (list.size() > MAX_AXES) throw std::runtime_error("a kernel's input has too many axes");
    std::array<T, MAX_AXES> padded{};
    std::copy(list.begin(), list.end(), padded.begin());
    chain.arguments.push_back(chain.words.size());
    chain.words.resize(chain.words.size() + sizeof(padded) / sizeof(uint64_t));
    std::memcpy(&chain.words[chain.arguments.back()], padded.data(), sizeof(padded));
  }

  // After launch `i`, which is the last that needs it; −1: none does.
  void end_use(Result r, int i) {
    auto place = places_.find(key(r));
    if (place->second.of != Address::Of::between || (i >= 0 && last_use_.at(key(r)) != i)) return;
    pieces_.give_back(place->second.at, n_bytes(r));
    if (i >= 0) last_use_.at(key(r)) = -1;
  }

  size_t n_bytes(Result r) const {
    auto n = nodes_[r.node].result(r.position).nbytes();
    return std::max<size_t>(1, (n + ALIGN_BYTES - 1) / ALIGN_BYTES) * ALIGN_BYTES;
  }

  std::vector<Visited>& nodes_;
  const std::vector<int>& segment_;
  std::unordered_map<uint64_t, int> last_use_;
  std::unordered_map<uint64_t, Address> places_;
  Pieces pieces_;
};

bool Joining::join(const std::vector<int>& segment) {
  Linking linking(nodes_, segment);
  linking.run();
  if (linking.chain.between_bytes > MAX_BETWEEN_BYTES) return false;
  std::vector<array> inputs;
  for (auto input : linking.inputs) inputs.push_back(packed(in_new_graph(input), stream_));
  auto [shapes, dtypes] = sizes(linking.outputs);
  auto chain = std::make_shared<const Chain>(std::move(linking.chain));
  auto made = made_of(stream_, chain, std::move(inputs), std::move(shapes), dtypes);
  for (size_t k = 0; k < made.size(); ++k) {
    auto [i, position] = linking.outputs[k];
    auto& of = nodes_[i].made;
    // Nothing asks for those that were not wanted.
    if (of.empty()) of.assign(nodes_[i].n_results(), made[k]);
    of[position] = made[k];
  }
  return true;
}

}  // namespace

struct Recording {
  mx::Stream stream;
  SharedChain chain;
  // For each of its inputs which source it is; −1: the next of the constants.
  std::vector<int> source_of;
  std::vector<array> constants;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  // For each array that was asked for which result it is, and its shape.
  std::vector<std::pair<size_t, mx::Shape>> asked;
};

std::shared_ptr<Recording> Joining::record(const std::vector<array>& outputs,
                                           const std::vector<array>& sources) {
  auto parts_it = [](const Visited& node) {
    return node.kind == Visited::Kind::other || node.segment > 0;
  };
  if (std::any_of(nodes_.begin(), nodes_.end(), parts_it)) return nullptr;
  std::vector<int> segment;
  for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
    if (nodes_[i].is_in_segment()) segment.push_back(i);
  }
  if (segment.size() < FEWEST) return nullptr;
  mark_wanted();
  Linking linking(nodes_, segment);
  linking.run();
  if (linking.chain.between_bytes > MAX_BETWEEN_BYTES) return nullptr;
  auto made = std::make_shared<Recording>(Recording{stream_, nullptr, {}, {}, {}, {}, {}});
  for (auto input : linking.inputs) {
    const auto& a = nodes_[input.node].result(input.position);
    auto is_it = [&](const array& source) { return source.id() == a.id(); };
    auto source = std::find_if(sources.begin(), sources.end(), is_it);
    made->source_of.push_back(source == sources.end() ? -1 : source - sources.begin());
    if (source == sources.end()) made->constants.push_back(a);
  }
  for (size_t k = 0; k < outputs.size(); ++k) {
    auto from = root_of(nodes_, outputs_[k]);
    auto is_it = [&](Result r) { return r.node == from.node && r.position == from.position; };
    auto place = std::find_if(linking.outputs.begin(), linking.outputs.end(), is_it);
    if (place == linking.outputs.end()) return nullptr;
    made->asked.emplace_back(place - linking.outputs.begin(), outputs[k].shape());
  }
  std::tie(made->shapes, made->dtypes) = sizes(linking.outputs);
  made->chain = std::make_shared<const Chain>(std::move(linking.chain));
  return made;
}

std::shared_ptr<Recording> record(const Arrays& outputs, const Arrays& sources) {
  if (!has_cuda()) return nullptr;
  return Joining(outputs.items, sources.items).record(outputs.items, sources.items);
}

bool is_same(const std::shared_ptr<Recording>& a, const std::shared_ptr<Recording>& b) {
  auto is_one = [](const array& x, const array& y) { return x.id() == y.id(); };
  return *a->chain == *b->chain && a->source_of == b->source_of && a->asked == b->asked &&
         a->dtypes == b->dtypes && a->shapes == b->shapes &&
         std::equal(a->constants.begin(), a->constants.end(), b->constants.begin(),
                    b->constants.end(), is_one);
}

std::unique_ptr<Arrays> replay(const std::shared_ptr<Recording>& recording, const Arrays& sources) {
  const auto& r = *recording;
  std::vector<array> inputs;
  auto constant = r.constants.begin();
  for (auto source : r.source_of) {
    inputs.push_back(source < 0 ? *constant++ : packed(sources.items.at(source), r.stream));
  }
  auto made = made_of(r.stream, r.chain, std::move(inputs), r.shapes, r.dtypes);
  std::vector<array> outputs;
  for (const auto& [result, shape] : r.asked) {
    outputs.push_back(mx::reshape(made[result], shape, r.stream));
  }
  return own(std::move(outputs));
}

std::unique_ptr<Arrays> joined(const Arrays& outputs) {
  if (!has_cuda()) return own(std::vector<array>(outputs.items));
  return own(Joining(outputs.items, {}).run(outputs.items));
}

}  // namespace offshoot
