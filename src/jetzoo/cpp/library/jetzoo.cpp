// The functions of jetzoo.h: what they are given is checked, and no exception leaves them.
#include "jetzoo.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "network.h"

struct jetzoo_network : Network {
    using Network::Network;
};
struct jetzoo_workspace : Memory {};

template <class Function>
static int32_t status_of(Function function) noexcept {
    try {
        function();
        return JETZOO_OK;
    } catch (const Error& error) {
        return error.status;
    } catch (const std::bad_alloc&) {
        return JETZOO_NO_MEMORY;
    } catch (const std::length_error&) {
        return JETZOO_NO_MEMORY;
    } catch (...) {
        return JETZOO_FAILED;
    }
}

const char* jetzoo_error_text(int32_t status) {
    switch (status) {
        case JETZOO_OK: return "no error";
        case JETZOO_NO_MEMORY: return "there is not enough memory";
        case JETZOO_BAD_ARGUMENT: return "an argument is null, negative or too large";
        case JETZOO_NO_FILE: return "the weights file cannot be read";
        case JETZOO_BAD_FILE: return "the weights file is damaged, or of another version";
        case JETZOO_NO_INSTRUCTION_SET:
            return "the processor or the library lacks the instruction set that JETZOO_ISA names";
        default: return "an unexpected error";
    }
}

int32_t jetzoo_open(const char* path, jetzoo_network** network) {
    if (!network) return JETZOO_BAD_ARGUMENT;
    *network = nullptr;
    if (!path) return JETZOO_BAD_ARGUMENT;
    return status_of([&] {
        const Kernels* kernels = find_kernels(std::getenv("JETZOO_ISA"));
        if (!kernels) throw Error{JETZOO_NO_INSTRUCTION_SET};
        *network = new jetzoo_network(path, *kernels);
    });
}

void jetzoo_close(jetzoo_network* network) { delete network; }

const char* jetzoo_describe(const jetzoo_network* network) {
    return network ? network->description() : nullptr;
}

const char* jetzoo_instruction_set(const jetzoo_network* network) {
    return network ? network->kernels.name : nullptr;
}

int32_t jetzoo_num_classes(const jetzoo_network* network) {
    return network ? network->classes.size() : 0;
}

const char* jetzoo_class(const jetzoo_network* network, int32_t index) {
    if (index < 0 || index >= jetzoo_num_classes(network)) return nullptr;
    return network->classes[index];
}

int32_t jetzoo_num_variables(const jetzoo_network* network) {
    return network ? network->inputs.variables.size() : 0;
}

const char* jetzoo_variable(const jetzoo_network* network, int32_t index) {
    if (index < 0 || index >= jetzoo_num_variables(network)) return nullptr;
    return network->inputs.variables[index].name;
}

int32_t jetzoo_is_per_particle(const jetzoo_network* network, int32_t index) {
    if (index < 0 || index >= jetzoo_num_variables(network)) return 0;
    return network->inputs.variables[index].per_particle;
}

int32_t jetzoo_workspace_create(jetzoo_workspace** workspace) {
    if (!workspace) return JETZOO_BAD_ARGUMENT;
    *workspace = nullptr;
    return status_of([&] { *workspace = new jetzoo_workspace; });
}

void jetzoo_workspace_free(jetzoo_workspace* workspace) { delete workspace; }

int32_t jetzoo_predict(const jetzoo_network* network, jetzoo_workspace* workspace,
                       const float* const* variables, int64_t num_particles, float* scores) {
    if (!network || !workspace || !variables || !scores || num_particles < 0 ||
        num_particles > JETZOO_MAX_PARTICLES)
        return JETZOO_BAD_ARGUMENT;
    for (const Inputs::Variable& variable : network->inputs.variables) {
        const float* numbers = variables[&variable - network->inputs.variables.data()];
        if (!numbers && (num_particles > 0 || !variable.per_particle)) return JETZOO_BAD_ARGUMENT;
    }
    return status_of(
        [&] { network->predict(variables, num_particles, scores, *workspace); });
}
