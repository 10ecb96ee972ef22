#include "inputs.h"

#include <algorithm>
#include <cmath>

#include "jetzoo.h"

Inputs::Inputs(Reader& reader) {
    variables.resize(reader.integer(1, 1024));
    for (Variable& variable : variables) {
        variable.name = reader.text();
        variable.per_particle = reader.integer(0, 1);
    }
    instructions.resize(reader.integer(0, 4096));
    int32_t columns = variables.size();
    for (Instruction& step : instructions) {
        step.operation = Operation(reader.integer(0, OPERATIONS - 1));
        step.a = reader.integer(0, columns - 1);
        step.b = reader.integer(0, columns - 1);
        step.constant = reader.number();
        columns++;
    }
    longest = reader.integer(1, JETZOO_MAX_PARTICLES);
    for (auto& group : groups) {
        group.resize(reader.integer(1, 1024));
        for (Input& input : group) {
            input.column = reader.integer(0, columns - 1);
            input.standardised = reader.integer(0, 1);
            input.center = reader.number();
            input.scale = reader.number();
            input.low = reader.number();
            input.high = reader.number();
        }
    }
    if (width(MASK) != 1) throw Error{JETZOO_BAD_FILE};
}

float Inputs::Input::of(float x) const {
    if (standardised) {
        x = (x - center) * scale;
        if (x < low)
            x = low;
        else if (x > high)
            x = high;
    }
    return std::isnan(x) ? 0 : x;  // of a formula, such as 0 / 0: as in the training
}

// One instruction for n particles. The formulas are those of numpy for float32.
static void run(Operation operation, const float* a, const float* b, float constant, int64_t n,
                float* out) {
    const auto each = [&](auto function) {
        for (int64_t i = 0; i < n; i++) out[i] = function(a[i], b[i]);
    };
    const auto larger = [](float x, float y) { return std::isnan(x) || x > y ? x : y; };
    const auto smaller = [](float x, float y) { return std::isnan(x) || x < y ? x : y; };
    switch (operation) {
        case CONSTANT: return each([&](float, float) { return constant; });
        case ADD: return each([](float x, float y) { return x + y; });
        case SUBTRACT: return each([](float x, float y) { return x - y; });
        case MULTIPLY: return each([](float x, float y) { return x * y; });
        case DIVIDE: return each([](float x, float y) { return x / y; });
        case NEGATE: return each([](float x, float) { return -x; });
        case EQUAL: return each([](float x, float y) { return float(x == y); });
        case NOT_EQUAL: return each([](float x, float y) { return float(x != y); });
        case LESS: return each([](float x, float y) { return float(x < y); });
        case LESS_EQUAL: return each([](float x, float y) { return float(x <= y); });
        case HYPOT: return each([](float x, float y) { return std::hypot(x, y); });
        case ARCTAN2: return each([](float x, float y) { return std::atan2(x, y); });
        case MAXIMUM: return each(larger);
        case MINIMUM: return each(smaller);
        case LOG: return each([](float x, float) { return std::log(x); });
        case LOG1P: return each([](float x, float) { return std::log1p(x); });
        case EXP: return each([](float x, float) { return std::exp(x); });
        case SQRT: return each([](float x, float) { return std::sqrt(x); });
        case SQUARE: return each([](float x, float) { return x * x; });
        case ABS: return each([](float x, float) { return std::fabs(x); });
        case TANH: return each([](float x, float) { return std::tanh(x); });
        case SIN: return each([](float x, float) { return std::sin(x); });
        case COS: return each([](float x, float) { return std::cos(x); });
        case SINH: return each([](float x, float) { return std::sinh(x); });
        case OPERATIONS: break;
    }
}

Inputs::Columns Inputs::compute(const float* const* raw, int64_t num_particles, Buffer& columns,
                                Buffer& inputs) const {
    const int64_t n = std::min(num_particles, longest);
    float* column = columns.numbers<float>((variables.size() + instructions.size()) * n + 1);
    Columns found{0, {}, true};
    float* out = column;
    for (size_t v = 0; v < variables.size(); v++, out += n) {
        const bool per_particle = variables[v].per_particle;
        for (int64_t i = 0; i < (per_particle ? num_particles : 1); i++)
            found.finite &= std::isfinite(raw[v][i]);
        for (int64_t i = 0; i < n; i++) out[i] = raw[v][per_particle ? i : 0];
    }
    if (!found.finite) return found;
    for (const Instruction& step : instructions) {
        run(step.operation, column + step.a * n, column + step.b * n, step.constant, n, out);
        out += n;
    }
    size_t rows = 0;
    for (const auto& group : groups) rows += group.size();
    float* to = inputs.numbers<float>(rows * n + 1);
    const Input& mask = groups[MASK][0];
    const float* real = column + mask.column * n;
    for (int64_t i = 0; i < n; i++) found.n += mask.of(real[i]) != 0;
    for (int g = 0; g < GROUPS; g++) {
        found.of[g] = to;
        for (const Input& input : groups[g]) {
            const float* from = column + input.column * n;
            for (int64_t i = 0; i < n; i++)
                if (mask.of(real[i]) != 0) *to++ = input.of(from[i]);
        }
    }
    return found;
}
