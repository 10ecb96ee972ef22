// The functions of jetzoo.h as classes; errors are exceptions. It needs nothing but that header.
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "jetzoo.h"

namespace jetzoo {

inline void check(int32_t status, const std::string& what = "jetzoo") {
    if (status != JETZOO_OK) throw std::runtime_error(what + ": " + jetzoo_error_text(status));
}

// Memory of one thread.
class Workspace {
    std::unique_ptr<jetzoo_workspace, void (*)(jetzoo_workspace*)> own{nullptr,
                                                                       jetzoo_workspace_free};

  public:
    Workspace() {
        jetzoo_workspace* created = nullptr;
        check(jetzoo_workspace_create(&created));
        own.reset(created);
    }
    jetzoo_workspace* get() { return own.get(); }
};

// A trained network; any number of threads may call predict, each with its own workspace.
class Network {
    std::unique_ptr<jetzoo_network, void (*)(jetzoo_network*)> own{nullptr, jetzoo_close};

  public:
    explicit Network(const std::string& path) {
        jetzoo_network* opened = nullptr;
        check(jetzoo_open(path.c_str(), &opened), path);
        own.reset(opened);
    }
    std::string description() const { return jetzoo_describe(own.get()); }
    std::string instruction_set() const { return jetzoo_instruction_set(own.get()); }
    std::vector<std::string> classes() const {
        std::vector<std::string> names;
        for (int32_t i = 0; i < jetzoo_num_classes(own.get()); i++)
            names.emplace_back(jetzoo_class(own.get(), i));
        return names;
    }
    std::vector<std::string> variables() const {
        std::vector<std::string> names;
        for (int32_t i = 0; i < jetzoo_num_variables(own.get()); i++)
            names.emplace_back(jetzoo_variable(own.get(), i));
        return names;
    }
    bool is_per_particle(int32_t variable) const {
        return jetzoo_is_per_particle(own.get(), variable) == 1;
    }
    // See jetzoo_predict; without allocation.
    void predict(Workspace& workspace, const float* const* variables, int64_t num_particles,
                 float* scores) const {
        check(jetzoo_predict(own.get(), workspace.get(), variables, num_particles, scores));
    }
};

}  // namespace jetzoo
