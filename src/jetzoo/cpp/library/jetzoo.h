/* Scores of jets by a trained network that `jetzoo export --cpp` wrote, from C.
 *
 * A network may be used by any number of threads at once, each with a workspace of its own. Nothing
 * is kept outside of networks and workspaces, and no function throws.
 */
#ifndef JETZOO_H
#define JETZOO_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define JETZOO_API __attribute__((visibility("default")))
#else
#define JETZOO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What functions return. */
enum jetzoo_status {
    JETZOO_OK = 0,
    JETZOO_NO_MEMORY = 1,
    JETZOO_FAILED = 2,
    JETZOO_BAD_ARGUMENT = 3,       /* a null pointer, or a number that is negative or too large */
    JETZOO_NO_FILE = 4,            /* the weights file cannot be read */
    JETZOO_BAD_FILE = 5,           /* it is damaged, or of another version */
    JETZOO_NO_INSTRUCTION_SET = 6, /* JETZOO_ISA names what processor or library lack */
};

/* Particles of a jet that a call may hand over; a network looks at no more than the first 128, or
 * as many as its data config says. */
#define JETZOO_MAX_PARTICLES 1048576

typedef struct jetzoo_network jetzoo_network;
typedef struct jetzoo_workspace jetzoo_workspace;

/* What a status means; the text lives as long as the program. */
JETZOO_API const char* jetzoo_error_text(int32_t status);

/* Maps a weights file into memory, checks it, and chooses the kernels: those for the best
 * instruction set of the processor, or for the one that the environment variable JETZOO_ISA names
 * (plain, avx2, avxvnni, avx512, avx512vnni; neon). The file must stay as it is while the network
 * is open. *network is NULL unless JETZOO_OK is returned. */
JETZOO_API int32_t jetzoo_open(const char* path, jetzoo_network** network);
/* No thread may use the network any more; NULL is allowed. */
JETZOO_API void jetzoo_close(jetzoo_network* network);

/* The texts of a network live as long as it is open; an index out of range gives NULL. */

/* JSON: network, data config with its variables and standardisation, classes, version. */
JETZOO_API const char* jetzoo_describe(const jetzoo_network* network);
/* Of the kernels that were chosen. */
JETZOO_API const char* jetzoo_instruction_set(const jetzoo_network* network);
JETZOO_API int32_t jetzoo_num_classes(const jetzoo_network* network);
JETZOO_API const char* jetzoo_class(const jetzoo_network* network, int32_t index);
/* The raw variables that jetzoo_predict takes, such as part_px, in this order. */
JETZOO_API int32_t jetzoo_num_variables(const jetzoo_network* network);
JETZOO_API const char* jetzoo_variable(const jetzoo_network* network, int32_t index);
/* 1: one number for each particle; 0: one for the jet. */
JETZOO_API int32_t jetzoo_is_per_particle(const jetzoo_network* network, int32_t index);

/* The memory of one thread, which serves any network. It grows with the largest jet that it has
 * seen: later jets of at most that many particles allocate nothing. */
JETZOO_API int32_t jetzoo_workspace_create(jetzoo_workspace** workspace);
JETZOO_API void jetzoo_workspace_free(jetzoo_workspace* workspace);

/* Probabilities of the classes for one jet: scores[jetzoo_num_classes]. variables[i] points to
 * num_particles numbers of variable i, or to one. Particles are in the order of the training, by
 * falling pT. If any of the numbers is NaN or infinite, all scores are NaN, and that is JETZOO_OK. */
JETZOO_API int32_t jetzoo_predict(const jetzoo_network* network, jetzoo_workspace* workspace,
                                  const float* const* variables, int64_t num_particles,
                                  float* scores);

#ifdef __cplusplus
}
#endif

#endif
