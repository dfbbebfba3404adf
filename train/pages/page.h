// A page from runs: HTML that loads nothing, the same bytes for the same runs.
#pragma once

#include <string>
#include <vector>

#include "train/pages/prototype_map.h"
#include "train/pages/run_data.h"
#include "train/pages/writer.h"

namespace proteus {

struct ReportedRun {
  Run run;
  std::vector<PrototypeMap> maps{};
};

struct Page {
  std::string html;
  std::vector<Figure> figures;  ///< all that it shows, for files of their own
};

/// What none of the runs has is named at the end, with a command that makes it.
Page make_page(const std::vector<ReportedRun>& runs);

}  // namespace proteus
