# Installs the build into a fresh prefix, then configures, builds and runs the consumer against it.
# Then configures it with Proteus as a subfolder and compiles its own file: the libraries would be the
# same again. Variables: BUILD, SOURCE, WORK, GENERATOR, COMPILER, FLAGS.
file(REMOVE_RECURSE ${WORK})
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result)
    message(FATAL_ERROR "${ARGN}\n${output}")
  endif()
endfunction()
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
set(options -S ${SOURCE} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=${COMPILER}
            "-DCMAKE_CXX_FLAGS=${FLAGS}")
run(${CMAKE_COMMAND} ${options} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer)
run(${WORK}/prefix/bin/proteus --version)

run(${CMAKE_COMMAND} ${options} -B ${WORK}/subfolder -DPROTEUS_SOURCE=${SOURCE}/../.. -DPROTEUS_CUDA=OFF)
run(${CMAKE_COMMAND} --build ${WORK}/subfolder --target CMakeFiles/consumer.dir/main.cpp.o)
