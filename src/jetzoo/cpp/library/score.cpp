// Scores the jets of a CSV file, see csv.hpp.
#include <cstdio>
#include <exception>

#include "csv.hpp"

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: %s WEIGHTS JETS.csv\n", arguments[0]);
        return 2;
    }
    try {
        const jetzoo::Network network(arguments[1]);
        jetzoo::Workspace workspace;
        std::vector<float> scores(network.classes().size());
        std::printf("jet");
        for (const std::string& name : network.classes()) std::printf(",%s", name.c_str());
        std::printf("\n");
        for (const CsvJet& jet : read_jets(arguments[2], network)) {
            network.predict(workspace, jet.pointers().data(), jet.size, scores.data());
            std::printf("%ld", jet.number);
            for (float score : scores) std::printf(",%.7g", score);
            std::printf("\n");
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
